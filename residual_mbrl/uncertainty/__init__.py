"""How sure a model is: ensembles, densities of the correction, propagation, scores of bands, conformal correction, outliers."""
