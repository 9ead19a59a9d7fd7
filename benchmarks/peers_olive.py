"""What `peers.py` has done in another environment: Olive's passes, and the export of optimum-intel.

Olive quantizes an ONNX file (`OnnxStaticQuantization`, its defaults), then searches the session's options
(`OrtSessionParamsTuning`: execution mode, and threads within the budget) by the latency that its own
evaluator measures. Two workflows, since one with a search would calibrate anew for each value of a dozen
options. Written are `model.onnx` and `session.json`.

    python peers_olive.py olive MODEL.onnx CALIBRATION.npy OUTPUT_FOLDER THREADS
    python peers_olive.py optimum MODULE.pkl CALIBRATION.npy OUTPUT_FOLDER THREADS

Runs with the libraries of that environment alone; of Alula it needs nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

INPUT = "input"
CALIBRATION = "calibration_data"


def calibration_config(samples: np.ndarray, folder: Path) -> dict[str, Any]:
    """Write samples as raw files, and return how Olive reads them."""
    (folder / INPUT).mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(samples):
        sample.tofile(folder / INPUT / f"{index:04d}.bin")
    return {
        "name": CALIBRATION,
        "type": "RawDataContainer",
        "load_dataset_config": {
            "type": "raw_dataset",
            "params": {
                "data_dir": str(folder),
                "input_names": [INPUT],
                "input_shapes": [[1, *samples.shape[1:]]],
            },
        },
    }


def workflow(model: Path, data: dict[str, Any], folder: Path, passes: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a workflow that writes into a folder."""
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "systems": {
            "local": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [data],
        "passes": passes,
        "host": "local",
        "target": "local",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "output"),
        "log_severity_level": 2,
    }


def search_by_latency() -> dict[str, Any]:
    """Return the part of a configuration that has all listed values tried, and the fastest taken."""
    latency = {
        "name": "latency",
        "type": "latency",
        "sub_types": [{"name": "avg", "priority": 1}],
        "data_config": CALIBRATION,
    }
    return {
        "evaluators": {"speed": {"type": "OnnxEvaluator", "metrics": [latency]}},
        "evaluator": "speed",
        "search_strategy": {"execution_order": "joint", "sampler": "sequential"},
    }


def run_olive(model: Path, samples: np.ndarray, folder: Path, threads: int) -> None:
    """Write the quantized model, and the session options that Olive finds best."""
    from olive.workflows import run

    data = calibration_config(samples, folder / "calibration")
    quantization = {"type": "OnnxStaticQuantization", "data_config": CALIBRATION}
    quantized = run(workflow(model, data, folder / "quantized", {"quantization": quantization}))
    found = quantized.get_best_candidate()
    if found is None:
        raise SystemExit("Olive quantized nothing; its log says why.")
    shutil.copy2(found.model_path, folder / "model.onnx")
    tuning = {
        "type": "OrtSessionParamsTuning",
        "data_config": CALIBRATION,
        "cpu_cores": threads,
        "execution_mode_list": [0, 1],
        "opt_level_list": [99],
        "intra_thread_num_list": sorted({1, threads}),
    }
    tuned = run(
        workflow(folder / "model.onnx", data, folder / "tuned", {"tuning": tuning}) | search_by_latency()
    ).get_best_candidate()
    if tuned is None:
        raise SystemExit("Olive tuned nothing; its log says why.")
    settings = tuned.get_inference_config() or {}
    (folder / "session.json").write_text(json.dumps(settings.get("session_options") or {}))


def run_optimum(saved: Path, samples: np.ndarray, folder: Path) -> None:
    """Write `openvino_model.xml`, exported by optimum-intel.

    Its class for timm models takes only what the Hub holds, with three channels; a timm model in a folder is
    an architecture that it does not know. So the module is wrapped as transformers does, and exported by
    `main_export` with the configuration of its own class, which its documentation calls a custom export.
    """
    import torch
    from optimum.exporters.openvino import main_export
    from optimum.intel.openvino.modeling_timm import TimmOpenVINOConfig
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    module = torch.load(saved, weights_only=False)
    wrapped = TimmWrapperForImageClassification(
        TimmWrapperConfig(
            architecture=module.pretrained_cfg["architecture"],
            num_labels=module.num_classes,
            model_args={"in_chans": samples.shape[1]},
            num_channels=samples.shape[1],
            image_size=tuple(samples.shape[2:]),
        )
    )
    wrapped.timm_model.load_state_dict(module.state_dict())
    wrapped.save_pretrained(folder / "timm")
    main_export(
        str(folder / "timm"),
        output=folder,
        task="image-classification",
        library_name="transformers",
        custom_export_configs={"model": TimmOpenVINOConfig(wrapped.config, task="image-classification")},
    )


def main() -> None:
    what, model, calibration, output, threads = sys.argv[1:]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if what == "olive":
        run_olive(Path(model), np.load(calibration), folder, int(threads))
    else:
        run_optimum(Path(model), np.load(calibration), folder)


if __name__ == "__main__":
    main()
