"""Every first-party backend passes the conformance suite, as a stranger's must; so does one in a worker."""

from hal.backend import BackendRef
from hal.testing import BackendConformance
from hal.worker.backend import WorkerBackend


class TestCpu(BackendConformance):
    ref = BackendRef("plugin:cpu")


class TestCuda(BackendConformance):
    ref = BackendRef("plugin:cuda")  # without an NVIDIA GPU most checks are skipped, with the plugin's reason


class TestOpenVino(BackendConformance):
    ref = BackendRef("plugin:openvino")


class TestOnnxRuntime(BackendConformance):
    ref = BackendRef("plugin:onnxruntime")


class TestWorker(BackendConformance):
    """A worker keeps the contract for the backend in its child."""

    @classmethod
    def opened(cls):
        if cls.backend is None:
            cls.backend = WorkerBackend(BackendRef("hal.testing.fake:FakeBackend"))
        return cls.backend

    @classmethod
    def teardown_class(cls):
        if cls.backend is not None:
            cls.backend.close()
