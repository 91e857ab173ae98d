"""What `import hookbrew` offers, frozen here: adding a name is a decision."""

import subprocess
import sys

import hookbrew


def test_names():
    assert hookbrew.__all__ == [
        "Distillation",
        "HookbrewError",
        "Surgery",
        "Taps",
        "Task",
        "augment",
        "callback",
        "loss",
        "params",
        "schedule",
        "tap",
    ]
    assert len(hookbrew.__all__) <= 16


def test_every_name_is_there():
    for name in hookbrew.__all__:
        assert getattr(hookbrew, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    code = "import hookbrew\ntry:\n    hookbrew.distil\nexcept AttributeError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "module 'hookbrew' has no attribute 'distil'\n"


def test_dir_lists_the_names():
    assert dir(hookbrew) == sorted([*hookbrew.__all__, "__version__"])
