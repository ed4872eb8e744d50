"""The specification that a worker starts with."""

from __future__ import annotations

from pathlib import Path

from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.server import ModelSettings, Settings
from offgrid_llama.server.supervision.specs import worker_spec
from offgrid_llama.worker.service import Service


def test_biases_of_a_file(tmp_path: Path) -> None:
    """A TOML file can set a bias of tokens for all requests."""
    model, path = tmp_path / "m.gguf", tmp_path / "settings.toml"
    model.write_bytes(b"")
    path.write_text(
        f'[[models]]\nname = "m"\nmodel = "{model}"\nsampling = {{ top_k = 3, logit_bias = {{ "2" = -100, 5 = 1.5 }} }}',
        encoding="utf-8",
    )
    (settings,) = Settings.load(path, {}).models
    params = SamplingParams(**worker_spec(settings, 8)["sampling"])
    assert (params.top_k, dict(params.logit_bias)) == (3, {2: -100, 5: 1.5})


def test_stops_of_a_model(smollm2_path: Path) -> None:
    """They go to the worker with the sampling, and there to what answers conversations."""
    settings = ModelSettings("m", model=str(smollm2_path), n_ctx=256, n_parallel=1, stop=["###"])
    spec = worker_spec(settings, 8)
    service = Service(**{**spec, "model": {"load_mode": "mmap"}})
    assert list(service._conversations._stop) == ["###"]
    assert "stop" not in service._texts._sampling
    service.close()
    assert "stop" not in worker_spec(ModelSettings("m", model=str(smollm2_path)), 8)["sampling"]
