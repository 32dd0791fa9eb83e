from covey.engines.native.ops import TorchOps
def choose_ops(architecture, dtype):
    return TorchOps(architecture, dtype), ""
