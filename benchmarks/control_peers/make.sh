#!/usr/bin/env bash
# Makes the environments of the peers, each in a folder of its own, and compiles crocoddyl's cart-pole: make.sh [FOLDER [PYTHON]]
# FOLDER is ~/.cache/residual_mbrl/control_peers where missing; an environment that is there already is kept.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/residual_mbrl/control_peers}
python=${2:-python3.11}
mkdir -p "$folder"

make() {  # name, packages...
    local name=$1; shift
    [ -f "$folder/$name/made" ] && return
    rm -rf "${folder:?}/$name"
    "$python" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    touch "$folder/$name/made"
}

make mpc_pytorch mpc==0.0.6 torch==2.13.0 "numpy<2" setuptools
make pytorch_mppi pytorch-mppi==0.9.1 torch==2.13.0
make casadi casadi==3.8.2 numpy==2.4.6
# crocoddyl's wheel crashes with a later pin than it was built against; Eigen's headers are for the cart-pole in C++
make crocoddyl crocoddyl==3.2.1 libcrocoddyl==3.2.1 pin==4.0.0 libpinocchio==4.0.0 example-robot-data==5.0.0 \
    example-robot-data-loaders==5.0.0 cmeel-eigen==3.4.1 numpy==2.4.6

prefix=$("$folder/crocoddyl/bin/python" -c "import cmeel, pathlib, crocoddyl; print(pathlib.Path(crocoddyl.__file__).parents[4])")
if [ "$here/crocoddyl_cart_pole.cpp" -nt "$folder/crocoddyl_cart_pole" ]; then
    g++ -std=c++17 -O3 -DNDEBUG -I"$prefix/include" -I"$prefix/include/eigen3" "$here/crocoddyl_cart_pole.cpp" \
        -o "$folder/crocoddyl_cart_pole" -L"$prefix/lib" -lcrocoddyl -lpinocchio_default \
        -Wl,--disable-new-dtags,-rpath,"$prefix/lib",-rpath-link,"$prefix/lib"
fi
