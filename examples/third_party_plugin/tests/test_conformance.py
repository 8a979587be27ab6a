from hal.backend import BackendRef
from hal.testing import BackendConformance


class TestNumpyExample(BackendConformance):
    ref = BackendRef("plugin:numpy_example")
