"""Transformers models with less depth: the class, its configuration, saving, generate."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from nets_of_depth import TRANSFORMERS, deep_bert, deep_llama
from tiny_models import IDS, parameters

from prunec import compiler, passes
from prunec.compiler import PassManager, Plan, Result, capture
from prunec.compiler.artifact.check import prove_artifact
from prunec.passes import DropLayers, SparseToDense

DATA = [torch.randint(0, 99, (4, 7), generator=torch.Generator().manual_seed(i)) for i in range(3)]


def logits(model: Any, name: str) -> Any:
    _, args, kwargs = TRANSFORMERS[name]
    with torch.no_grad():
        return model(*args, **kwargs).logits


def shrunk(name: str, *steps: Any, **options: Any) -> tuple[Any, Result]:
    build, args, kwargs = TRANSFORMERS[name]
    model = build()
    graph = capture(model, args, kwargs=kwargs)
    data = [{"input_ids": ids} for ids in DATA] if kwargs else list(args)
    pipeline = [DropLayers(**options), *steps, SparseToDense()]
    return model, PassManager(pipeline).run(graph, data)


def check(name: str, model: Any, result: Result, place: pathlib.Path) -> None:
    """The user's class, equal to what its own artifact and plan give; counted as it is."""
    build = TRANSFORMERS[name][0]
    assert type(result.model) is type(model)
    assert all(c.passed for c in result.report.checks)
    assert parameters(result.model) == result.report.after.params
    expected = logits(result.model, name)
    loaded = compiler.load(result.save(place / "small"))
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded, name), expected)
    fresh = Plan.from_json(result.plan.to_json()).apply(build())
    assert torch.equal(logits(fresh, name), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_block_leaves_the_class(name: str, tmp_path: pathlib.Path) -> None:
    """The middle one, so that the last is numbered anew."""
    model, result = shrunk(name, count=1, include="*.1")
    assert list(result.plan.members.values()) == [[1]]
    assert result.plan.stubs == {}
    config = result.model.config
    assert config.num_hidden_layers == 2
    assert model.config.num_hidden_layers == 3
    check(name, model, result, tmp_path)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_branch_leaves_a_stub(name: str, tmp_path: pathlib.Path) -> None:
    model, result = shrunk(name, count=1, unit="branch", include="*.1.*att*")
    assert result.plan.members == {}
    assert result.plan.stubs
    check(name, model, result, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_depth_heads_and_widths_in_one_pipeline(name: str, tmp_path: pathlib.Path) -> None:
    model, result = shrunk(
        name,
        passes.MagnitudeScore(),
        passes.PruneHeads(0.5),
        passes.PruneChannels(0.5, include="hidden"),
        count=1,
        include="*.0",
    )
    assert len([d for d in result.report.dimensions if d.state == "dropped"]) >= 2
    assert result.model.config.intermediate_size == 32
    check(name, model, result, tmp_path)


def test_generate_without_the_first_layer() -> None:
    """The cache counts layers by their own numbers: with gaps it would lose the positions."""
    _, result = shrunk("llama", count=1, include="model.layers.0", replace="nothing")
    small = result.model
    prompt = IDS[:1, :4]
    layers = [layer.self_attn.layer_idx for layer in small.model.layers]
    assert layers == [0, 1]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cached = small.generate(prompt, **options)
        plain = small.generate(prompt, use_cache=False, **options)
        by_hand = prompt
        for _ in range(cached.shape[1] - prompt.shape[1]):
            step = small(input_ids=by_hand, use_cache=False).logits[:, -1:].argmax(-1)
            by_hand = torch.cat([by_hand, step], 1)
    assert torch.equal(cached, plain)
    assert torch.equal(cached, by_hand)


def test_the_mask_and_the_tables_of_the_first_layer_stay() -> None:
    """What the first layer made for all of them is still made."""
    model = deep_bert()
    mask = torch.ones_like(IDS)
    mask[:, 5:] = 0
    kwargs = {"input_ids": IDS, "attention_mask": mask}
    steps = [DropLayers(count=1, include="*.0"), SparseToDense()]
    result = PassManager(steps).run(capture(model, kwargs=kwargs))
    assert type(result.model) is type(model)
    changed = IDS.clone()
    changed[:, 5:] = 1
    with torch.no_grad():
        one = result.model(**kwargs).logits
        other = result.model(input_ids=changed, attention_mask=mask).logits
    assert torch.allclose(one, other, atol=1e-6)


def test_per_layer_lists_of_the_configuration_follow() -> None:
    config = deep_llama().config
    config.layer_types = ["full_attention"] * 3
    build = type(deep_llama())
    torch.manual_seed(0)
    model = build(config).eval()
    steps = [DropLayers(count=1, include="*.1"), SparseToDense()]
    result = PassManager(steps).run(capture(model, kwargs={"input_ids": IDS}))
    assert type(result.model) is build
    assert len(result.model.config.layer_types) == 2  # type: ignore[union-attr, arg-type]
    assert len(model.config.layer_types) == 3


def test_an_artifact_is_proved_against_the_original(tmp_path: pathlib.Path) -> None:
    model, result = shrunk("bert", count=1, unit="any", replace="mean")
    place = result.save(tmp_path / "small")
    checks = {c.name: c for c in prove_artifact(place, model, (), {"input_ids": IDS})}
    assert all(c.passed for c in checks.values())
    assert checks["dropped branches"].error is not None
    assert checks["stored weights == cut weights"].error == 0


def test_a_target_counts_from_the_whole_model() -> None:
    target = compiler.Target(params=0.5)
    steps = [passes.MagnitudeScore(), passes.AllocateWidths(target), passes.PruneHeads()]
    _, result = shrunk("bert", *steps, passes.PruneChannels(), count=1, replace="nothing")
    assert 0.4 < result.report.after.params / result.report.before.params <= 0.5


def test_all_but_one_layer() -> None:
    _, result = shrunk("bert", count=2)
    assert len(result.model.bert.encoder.layer) == 1  # type: ignore[union-attr]
    assert result.report.after.macs < 0.4 * result.report.before.macs
