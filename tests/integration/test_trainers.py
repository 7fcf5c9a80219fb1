"""Hugging Face's Trainer and accelerate train a patched model as they train the original."""

import copy

import pytest
import torch

import fcn_fast

from ..patch.families import batch, build, segformer
from ..patch.support import gradients
from .net import Net
from .net import batch as net_batch

pytest.importorskip("accelerate")


@pytest.fixture
def on_cpu(device):
    """accelerate's device is one for the process; a test of the other one asks for a process of its own."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("accelerate takes the GPU")
    return device == "cpu"


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.images, self.labels = batch(count=6)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def test_trainer(on_cpu, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = build(segformer, hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0)
    patched = copy.deepcopy(model)
    fcn_fast.patch(patched)
    data, logs = Images(), []
    for name, trained in (("plain", model), ("patched", patched)):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / name),
            use_cpu=on_cpu,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            logging_steps=1,
            save_strategy="epoch",
            eval_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(trained, arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
        logs.append([log.get("loss", log.get("eval_loss")) for log in trainer.state.log_history])
    assert len(logs[0]) == len(logs[1]) > 4
    for actual, expected in zip(logs[1], logs[0], strict=True):
        assert actual is expected is None or actual == pytest.approx(expected, rel=1e-3)
    kind = type(model)
    saved = sorted((tmp_path / "patched").glob("checkpoint-*"))[-1]
    again = kind.from_pretrained(saved)
    for name, tensor in patched.cpu().state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(on_cpu, precision):
    import accelerate

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=on_cpu, mixed_precision=precision)
    torch.manual_seed(0)
    model = Net()
    patched = copy.deepcopy(model)
    fcn_fast.patch(patched)
    results = []
    for original in (model, patched):
        kind = type(original)
        prepared, optimizer = accelerator.prepare(original, torch.optim.SGD(original.parameters(), 0.1))
        images, labels = net_batch(device=accelerator.device)
        loss, scores = prepared(images, labels)
        accelerator.backward(loss)
        results.append((loss.detach(), scores.dtype, gradients(original)))
        optimizer.step()
        assert type(accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)) is kind
    (expected, dtype, grads), (actual, actual_dtype, actual_grads) = results
    assert (actual.dtype, actual_dtype) == (expected.dtype, dtype)
    tolerance = 1e-4 if precision == "no" else 3e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(actual_grads, grads, rtol=tolerance, atol=tolerance / 10)
    fcn_fast.unpatch(patched)
