"""PyTorch for hal: the ONNX-to-PyTorch bridge, the executable that runs it, the importer of modules.

Nothing here imports PyTorch until it is used. What the plugins ``hal-cpu`` and ``hal-cuda`` share:

* :mod:`hal_torch.bridge`: an ONNX model as a ``torch.fx.GraphModule``.
* :mod:`hal_torch.support`: which nodes can run, and whether a configuration is legal.
* :mod:`hal_torch.executable`: ``TorchExecutable``, eager or compiled by Inductor, with kernel times.
* :mod:`hal_torch.precision`: float32 that is IEEE float32; autocast below it.
* :mod:`hal_torch.importer`: ``torch.nn.Module`` and ``torch.export`` programs as ONNX files.
"""
