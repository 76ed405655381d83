#!/usr/bin/env bash
# sim.sh SEEDS [OPTION...]: builds the simulator and runs it over that many seeds, or as the options say (docs/internals/simulator.md).
. "$(dirname "$0")/env.sh"
seeds=$1
shift
scripts/install.sh build test
scripts/libraries.sh
LOG_TAIL=0 scripts/build.sh release sim
if [ $# -gt 0 ]; then
    exec build/release/tests/sim/sim "$@"
fi
exec build/release/tests/sim/sim --seeds "$seeds"
