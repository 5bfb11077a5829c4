"""Parameters go to MuJoCo's own identification toolbox and come back unchanged."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.errors import ModelError
from residual_mbrl.sysid_parameters import from_sysid, load_sysid, save_sysid, to_sysid, update_sysid

PARAMETERS = Parameters(
    Parameter(name="damping:elbow", nominal=0.1, lower=0.0, upper=2.0, unit="N·m·s/rad", prior_std=0.3, description="viscous friction"),
    Parameter(name="mass:hand", nominal=1.0, lower=0.5, upper=1.5, unit="kg", free=False))
XML = '<mujoco><worldbody><body name="arm"><joint name="elbow" damping="0.1"/><geom size="0.1"/></body></worldbody></mujoco>'


@pytest.fixture
def sysid():
    """The toolbox; the test is skipped where its extra is not installed."""
    pytest.importorskip("yaml", reason="mujoco[sysid] is not installed")
    pytest.importorskip("colorama", reason="mujoco[sysid] is not installed")
    toolbox = pytest.importorskip("mujoco.sysid")
    if not hasattr(toolbox, "ParameterDict"):
        pytest.skip("mujoco[sysid] is not installed")
    return toolbox


def test_parameters_make_the_round_trip(sysid):
    """Names, bounds, freedom and values survive, and units and priors come back from the parameters they belong to."""
    theirs = to_sysid(PARAMETERS, {"damping:elbow": 0.7})
    assert isinstance(theirs, sysid.ParameterDict) and theirs.size == 1
    assert theirs.get_non_frozen_parameter_names() == ["damping:elbow"]
    assert np.array_equal(theirs.as_vector(), [0.7]) and np.array_equal(theirs.as_nominal_vector(), [0.1])
    back, values = from_sysid(theirs, PARAMETERS)
    assert list(back) == list(PARAMETERS)
    assert values == {"damping:elbow": 0.7, "mass:hand": 1.0}


def test_their_files_are_read_and_written(sysid, tmp_path):
    """Their toolbox reads our file, and we read theirs."""
    path = tmp_path / "parameters.yaml"
    save_sysid(path, PARAMETERS, {"damping:elbow": 0.7})
    theirs = sysid.ParameterDict.load_from_disk(path)
    assert theirs["damping:elbow"].value == pytest.approx([0.7]) and theirs["mass:hand"].frozen
    back, values = load_sysid(path, PARAMETERS)
    assert list(back) == list(PARAMETERS) and values["damping:elbow"] == 0.7


def test_arrays_become_numbered_numbers(sysid):
    """A parameter of several entries is one of ours an entry, and takes values back in its own shape."""
    theirs = sysid.ParameterDict()
    theirs.add(sysid.Parameter("pd", [[10.0, 1.0]], [[0.0, 0.0]], [[99.0, 9.0]]))
    ours, values = from_sysid(theirs)
    assert ours.names == ["pd[0]", "pd[1]"] and values == {"pd[0]": 10.0, "pd[1]": 1.0}
    update_sysid(theirs, {"pd[1]": 2.0})
    assert np.array_equal(theirs["pd"].value, [[10.0, 2.0]])
    with pytest.raises(ModelError, match=r"no parameter named 'pd\[2\]'; there are \['pd\[0\]', 'pd\[1\]'\]"):
        update_sysid(theirs, {"pd[2]": 0.0})


def test_modifiers_write_into_the_spec(sysid):
    """The toolbox applies our parameters to a model by the writer that it is given."""
    def write(spec, values):
        spec.joint("elbow").damping[0] = values["damping:elbow"]

    theirs = to_sysid(PARAMETERS, {"damping:elbow": 0.7}, write=write)
    model = sysid.apply_param_modifiers(theirs, mujoco.MjSpec.from_string(XML))
    assert model.dof_damping[0] == pytest.approx(0.7)


def test_impossible_parameters_are_named(sysid):
    """A nominal value outside its bounds cannot be ours."""
    theirs = sysid.ParameterDict()
    theirs.add(sysid.Parameter("gain", 3.0, 0.0, 1.0))
    with pytest.raises(ModelError, match="mujoco.sysid: Parameter 'gain': expected lower <= nominal <= upper"):
        from_sysid(theirs)


def test_files_that_hold_no_parameters_are_refused(sysid, tmp_path):
    """The error names the file."""
    path = tmp_path / "parameters.yaml"
    with pytest.raises(ModelError, match=r"parameters.yaml: cannot be read \(No such file"):
        load_sysid(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ModelError, match="parameters.yaml: no parameters of mujoco.sysid"):
        load_sysid(path)


def test_unknown_values_are_refused(sysid):
    """A value must belong to a parameter."""
    with pytest.raises(ModelError, match="no parameter named 'mass'"):
        to_sysid(PARAMETERS, {"mass": 1.0})


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    """Without the toolbox's dependencies the error gives the command."""
    monkeypatch.setitem(sys.modules, "mujoco.sysid", SimpleNamespace())
    monkeypatch.setattr(mujoco, "sysid", SimpleNamespace(), raising=False)
    with pytest.raises(ModelError, match=r"pip install 'mujoco\[sysid\]'"):
        to_sysid(PARAMETERS)
