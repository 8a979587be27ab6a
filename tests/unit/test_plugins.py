from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from hal import plugins as registry
from hal.backend import BackendRef
from hal.errors import ContractViolation, NoBackend, PluginLoadError
from hal.trace import enable_from_environment
from tests.throwaway import Plugins

HOOK = "from hal.hookspecs import hookimpl\n@hookimpl\ndef hal_backend():\n    "


def test_import_hal_loads_nothing_outside_the_standard_library() -> None:
    script = (
        "import sys; before = set(sys.modules); import hal;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'hal'}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_command_line_loads_no_framework_when_asked_for_help(command: str) -> None:
    script = (
        f"import sys; sys.argv = ['hal', {command!r}]\n"
        "from hal.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "frameworks = {'torch', 'onnxruntime', 'openvino', 'onnx', 'numpy'}\n"
        "print(sorted(frameworks & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr.strip().splitlines()[-1] == "[]"


def test_installed_reads_metadata_only_when_listing(plugins: Plugins) -> None:
    plugins.add("loud", "raise SystemExit('imported')")
    (plugin,) = registry.installed()
    assert (plugin.name, plugin.distribution, plugin.version) == ("loud", "hal-loud", "1.2.3")
    assert plugin.failure == ""


def test_installed_sees_a_plugin_when_it_was_added_later(plugins: Plugins) -> None:
    plugins.add_fake("first")
    assert [plugin.name for plugin in registry.installed()] == ["first"]
    plugins.add_fake("second")
    assert [plugin.name for plugin in registry.installed()] == ["first", "second"]


def test_installed_refuses_both_when_two_claim_one_name(plugins: Plugins) -> None:
    plugins.add_fake("twin")
    plugins.add("twin", "", distribution="other-twin")
    found = registry.installed()
    assert [plugin.distribution for plugin in found] == ["hal-twin", "other-twin"]
    for plugin in found:
        assert "claimed by hal-twin and other-twin; both are refused" in plugin.failure
    with pytest.raises(PluginLoadError, match="plugin 'twin' is refused: the name 'twin' is claimed by"):
        registry.reference("twin")


def test_installed_goes_on_when_a_distribution_has_no_metadata(plugins: Plugins) -> None:
    plugins.add_fake("bare")
    for path in plugins.folder.glob("*.dist-info/METADATA"):
        path.unlink()
    (plugin,) = registry.installed()
    assert (plugin.name, plugin.distribution) == ("bare", "unknown")


def test_installed_names_the_stranger_when_hal_plugins_lists_one(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.add_fake("one")
    monkeypatch.setenv("HAL_PLUGINS", "one,three")
    with pytest.raises(
        PluginLoadError, match=r"HAL_PLUGINS names 'three', not installed; installed are .*one"
    ):
        registry.installed()


def test_installed_is_empty_when_hal_plugins_is_empty(plugins: Plugins) -> None:
    assert registry.installed() == ()
    with pytest.raises(PluginLoadError, match="there is no plugin 'cpu'; installed are none"):
        registry.reference("cpu")


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("raise ValueError('bad day')", PluginLoadError, "failed to import: ValueError: bad day"),
        ("import nothing_like_this", PluginLoadError, "No module named 'nothing_like_this'"),
        (HOOK + "raise OSError('no disk')", PluginLoadError, "in its hook 'hal_backend': OSError: no disk"),
        ("x = 1", NoBackend, "brings no backend; it has no hook 'hal_backend'"),
        (HOOK + "return 5", ContractViolation, "returned int; expected an instance of hal.backend.Backend"),
        (
            "from hal.testing import FakeBackend\n"
            + HOOK
            + "b = FakeBackend(); b.api_version = 99; return b",
            ContractViolation,
            "written for contract version 99, this hal has 1",
        ),
        (
            "from hal.testing import FakeBackend\n" + HOOK + "return FakeBackend(name='other')",
            ContractViolation,
            "its backend calls itself 'other'; Backend.name must be the name of the entry point",
        ),
        (
            "from hal.testing import FakeBackend\n" + HOOK + "return FakeBackend(name='')",
            ContractViolation,
            "it has no name",
        ),
    ],
)
def test_open_backend_keeps_the_reason_when_a_plugin_breaks(
    plugins: Plugins, source: str, error: type[Exception], text: str
) -> None:
    plugins.add(f"p{abs(hash(source)) % 10**8}", source)
    (plugin,) = registry.installed()
    with pytest.raises(error, match=text):
        registry.open_backend(registry.reference(plugin.name))


@pytest.mark.parametrize(
    ("entry_point", "text"),
    [
        ("nonsense", "'nonsense' names no backend; expected MODULE:ATTRIBUTE or plugin:NAME"),
        ("hal.testing:Missing", "failed to open: AttributeError"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("plugin:nobody", "there is no plugin 'nobody'"),
    ],
)
def test_open_backend_says_why_when_the_reference_is_wrong(
    plugins: Plugins, entry_point: str, text: str
) -> None:
    with pytest.raises(PluginLoadError, match=text):
        registry.open_backend(BackendRef(entry_point))


def test_importers_leave_out_a_plugin_when_it_breaks(
    plugins: Plugins, caplog: pytest.LogCaptureFixture
) -> None:
    plugins.add("broken", "raise ValueError('bad day')")
    plugins.add(
        "good",
        "from hal.hookspecs import hookimpl\n"
        "class Reader:\n    def accepts(self, source):\n        return source == 7\n"
        "@hookimpl\ndef hal_importer():\n    return Reader()\n",
    )
    with caplog.at_level(logging.WARNING):
        ((name, importer),) = registry.importers()
    assert name == "good"
    assert importer.accepts(7)
    assert "plugin broken has no usable importer" in caplog.text


def test_trace_shows_plugins_and_calls_when_hal_trace_is_set(plugins: Plugins) -> None:
    plugins.add_fake("one")
    script = (
        "from hal.trace import enable_from_environment; enable_from_environment()\n"
        "from hal.profiling import discover; discover()\n"
    )
    import os

    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HAL_TRACE": "1"},
    )
    assert "plugin one from hal-one 1.2.3" in result.stderr
    assert "discover devices in" in result.stderr
    assert "opened plugin 'one'" in result.stderr  # the child's own line


def test_trace_stays_silent_when_hal_trace_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_TRACE", "0")
    assert not enable_from_environment()
