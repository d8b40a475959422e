"""Calls of a transformers model with a cache: captured as a step on its tensors, which kernels write in place."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache, StaticLayer

from ...frontend.capture import signature_of
from ...ir import ops
from ...ir.errors import CaptureError, InputError, UnsupportedError
from ..calls import Call, CallReader
from ..captures import Captures, Uncapturable
from ..entry import Entry
from ..options import Options
from ..stateful import kept_of, share_kept
from .caches import DecoderMemory, SourceMemory, Unfit
from .inputs import CACHE, Arguments, UnfitMask, kept_logits
from .recording import RecordedStep, Recording
from .report import CacheCounts
from .running import Form, Found, check_apart
from .shapes import DECODER, SOURCE, Shapes
from .step import PREFIX, CachedStep, StepQuantization
from .storage import storage_for


class Uncaptured(Unfit):
    """A call that could not be captured.

    Attributes:
        form, constants: of calls that could not be either, if PyTorch runs this one; a form of None where that is
            known, or unknown of others.
    """

    def __init__(self, reason: str, form: Form | None = None, constants: tuple[Any, ...] = ()) -> None:
        super().__init__(reason)
        self.form, self.constants = form, constants


class CachedCalls:
    """The calls of one model that have a cache.

    Attributes:
        counts: for the report.
        asked: how many positions caches may need in the end; 0 where nobody knows.
        storage: how a decoder's own keys and values lie in memory.
        recording: where calls are recorded; None where they are not.
    """

    def __init__(self, model: Any, options: Options) -> None:
        self.model = model
        self.options = options
        self.counts = CacheCounts()
        self.asked = 0
        self._kept = kept_of(model)
        self.storage = storage_for(options.kv_cache_dtype, model.dtype)
        self.counts.dtype = self.storage.name
        self._step = CachedStep(model, self.storage)
        share_kept(self._step, model)
        self._reader = CallReader(signature_of(self._step))
        self._arguments = Arguments(model)
        self._shapes = Shapes(model)
        self._forms: dict[Any, Form] = {}
        self._memory: weakref.WeakKeyDictionary[Any, DecoderMemory] = weakref.WeakKeyDictionary()
        self._sources: weakref.WeakKeyDictionary[Any, SourceMemory] = weakref.WeakKeyDictionary()
        self.recording: Recording | None = None

    @property
    def entries(self) -> list[Entry]:
        """The captures."""
        return [entry for form in self._forms.values() for entry in form.captures.entries]

    def refresh(self) -> None:
        """Take the model's weights as they are now."""
        for form in self._forms.values():
            form.captures.refresh()

    @property
    def written(self) -> set[int]:
        """The addresses of the model's own tensors that its calls write to."""
        found = set()
        for entry in self.entries:
            for mutation in entry.executable.plan.graph.mutations:
                tensor = entry.capture.weights.get(str(mutation.target.attrs.get("name")))
                if tensor is not None and mutation.target.is_a(ops.weight):
                    found.add(tensor.data_ptr())
        return found

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name."""
        return self._arguments.named(args, kwargs)

    def has_cache(self, given: Mapping[str, Any]) -> bool:
        """Whether a call is given a cache, or makes one."""
        return given.get(CACHE) is not None or self._makes_cache(given)

    def begins(self, given: Mapping[str, Any]) -> bool:
        """Whether a call begins a text: its cache is empty, or it makes one."""
        cache = given.get(CACHE)
        if cache is None:
            return self._makes_cache(given)
        try:
            return isinstance(cache, Cache) and not cache.get_seq_length()
        except Exception:  # some layers have no length
            return False

    def run(self, given: dict[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The model's output for a call with a cache, which is updated; None for a call without one.

        A call that asks for a cache gets a new one, where it can be compiled.

        Args:
            given: all arguments by name.
            args, kwargs: the same as the caller wrote them.

        Raises:
            CaptureError, UnsupportedError: as for any call, where fallbacks are errors.
            IndexError: an index was out of range, that of a position beyond a static cache for one.
        """
        cache = given.get(CACHE)
        if cache is None:
            return self._begin(given) if self._makes_cache(given) else None
        if not isinstance(cache, Cache):
            return None
        static = [layer for layer in _static_layers(cache) if not layer.is_initialized]
        try:
            return self._compiled(given, self.asked)
        except Unfit as error:
            reason = error
            self._count(reason)
        for layer in static:  # what they were made as was a guess
            layer.is_initialized = False
        found = self._in_pytorch(reason, args, kwargs)
        if self._shapes.learn(cache):
            for form in self._forms.values():
                form.refused.clear()
        return found

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """Let sequence i of a cache continue what was sequence ``rows[i]`` [B], and return the cache."""
        if rows.tolist() == list(range(len(rows))):
            return cache
        own = cache.self_attention_cache if type(cache) is EncoderDecoderCache else cache
        memory = self._memory.get(own) if isinstance(own, Cache) else None
        if memory is None or not memory.matches(own):
            cache.reorder_cache(rows)
            return cache
        memory.reorder(rows)
        if own is not cache:
            cache.cross_attention_cache.reorder_cache(rows)
        return cache

    def _makes_cache(self, given: Mapping[str, Any]) -> bool:
        """Whether a call that is given no cache makes one that may be ours."""
        config = self.model.config
        wanted = given.get("use_cache")
        if not (getattr(config, "use_cache", False) if wanted is None else wanted):
            return False
        return not getattr(config, "add_cross_attention", False) and hasattr(self.model, "generate")

    def with_cache(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, with an empty cache where it makes one."""
        if given.get(CACHE) is not None or not self._makes_cache(given):
            return given
        own = self.model.config.get_text_config(decoder=True)
        made = DynamicCache(config=own)
        if self._arguments.has_source:
            made = EncoderDecoderCache(made, DynamicCache(config=own))
        return {**given, CACHE: made}

    def _begin(self, given: dict[str, Any]) -> Any:
        """The output of a call that makes a cache; None where it cannot be compiled with one."""
        try:
            return self._compiled(self.with_cache(given), 0)
        except (Uncaptured, UnfitMask) as error:  # Dynamo would split it where its Python decides by values
            reason = error
            self._count(reason)
        except Unfit as error:
            if self.storage.narrow:  # it was asked for
                self._count(error)
            return None
        return self._in_pytorch(reason, (), given)

    def _in_pytorch(self, reason: Unfit, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The model's own output, and a look at whether it keeps something on itself."""
        if self.recording is not None:
            self.recording.passed = str(reason)
        with torch.no_grad(), self._kept.watching(self.model):
            found = self.model(*args, **kwargs)
        if isinstance(reason, Uncaptured) and reason.form is not None:  # it was no fault of the call
            reason.form.refused[reason.constants] = str(reason)
        return found

    def _check_state(self) -> None:
        """Raise Uncaptured where the model keeps state, or an error where fallbacks are."""
        if not self._kept.reason:
            return
        self._forms.clear()
        reason = f"it cannot be captured: {self._kept.reason}"
        if self.options.fallback == "error":
            raise CaptureError(f"{type(self.model).__name__}: {reason}")
        raise Uncaptured(reason)

    def _count(self, reason: Unfit) -> None:
        self.counts.passed[str(reason)] = self.counts.passed.get(str(reason), 0) + 1

    # --- one call -----------------------------------------------------------------------------------------------------

    def _compiled(self, given: Mapping[str, Any], asked: int) -> Any:
        """The output of a call that is compiled; ``asked`` is how many positions its cache may need in the end.

        Raises:
            Unfit: PyTorch must run it. The cache is as it was then.
        """
        self._arguments.check(given)
        self._check_state()
        batch, count = self._arguments.tokens(given)
        memory, source = self._memory_of(given[CACHE], given, batch, count, asked)
        inputs = self._arguments.inputs(given, memory, batch, count)
        form = self._form(inputs, memory, source, count)
        check_apart(inputs, memory, source)
        found = self._run(form, inputs, memory, source, given)
        memory.advance(count)
        if source is not None:
            source.advance(given[CACHE])
        return output_of(found, given, self.model.config)

    def _memory_of(
        self, cache: Any, given: Mapping[str, Any], batch: int, count: int, asked: int
    ) -> tuple[DecoderMemory, SourceMemory | None]:
        """The tensors of a cache, with room for what the call writes."""
        both = type(cache) is EncoderDecoderCache
        if both != self._arguments.has_source:
            raise Unfit(f"{type(cache).__name__} is not what this model's decoder takes")
        own = cache.self_attention_cache if both else cache
        self._shapes.fill(own)
        memory = self._memory.get(own)
        if memory is None or not memory.matches(own):
            memory = self._memory[own] = DecoderMemory(own, self.options.target.device, self.storage)
        memory.prepare(batch, count, asked, lambda: self._shapes.of(DECODER, own))
        return memory, self._source_of(cache, given, batch) if both else None

    def _source_of(self, cache: EncoderDecoderCache, given: Mapping[str, Any], batch: int) -> SourceMemory:
        cross = cache.cross_attention_cache
        self._shapes.fill(cross)
        source = self._sources.get(cache)
        if source is None:
            source = self._sources[cache] = SourceMemory(cross)
        length = self._arguments.source_length(given)
        source.prepare(cache, batch, length, lambda: self._shapes.of(SOURCE, cross))
        return source

    def _form(self, inputs: Mapping[str, Any], memory: DecoderMemory, source: SourceMemory | None, count: int) -> Form:
        ranks = tuple((name, value.ndim if isinstance(value, Tensor) else None) for name, value in inputs.items())
        attention = self.model.config._attn_implementation
        key = (ranks, count == 1, memory.kinds, None if source is None else source.filled, attention)
        form = self._forms.get(key)
        if form is None:
            slot = torch.tensor(memory.slot)
            args = (dict(inputs), memory.keys, memory.values, slot, memory.kinds)
            rest = (source.keys, source.values, source.filled) if source else ([], [], False)
            spec = self._reader.read((*args, *rest, memory.scales), {}).spec
            names = self._arguments.sizes(inputs, memory, source, count)
            dynamic = False if self.options.dynamic is False else names
            asked = self.options.quantize
            quantize = None if asked is None else StepQuantization(**vars(asked))
            options = replace(self.options, dynamic=dynamic, quantize=quantize)
            captures = Captures(self._step, options, self._reader, prefix=PREFIX)
            form = self._forms[key] = Form(spec, captures)
        return form

    # --- running ------------------------------------------------------------------------------------------------------

    def _run(
        self,
        form: Form,
        inputs: Mapping[str, Any],
        memory: DecoderMemory,
        source: SourceMemory | None,
        given: Mapping[str, Any],
    ) -> Any:
        leaves = _leaves(inputs, memory, source)
        found = self._find(form, inputs, leaves, (memory.shapes, source.shapes if source else ()))
        if self.recording is not None:
            before = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            call = Call(form.spec, before)
            step = RecordedStep(found.entry, found.sizes, call, given, len(inputs), memory, source)
            self.recording.steps.append(step)
        try:
            result = found.run(leaves)
        except RuntimeError as error:
            form.withdraw(found, leaves, error)
            raise
        counts = self.counts
        counts.calls += 1
        counts.rewritten += found.rewritten
        counts.moved += memory.take_copied()
        counts.nbytes = memory.nbytes
        return result

    def _find(self, form: Form, inputs: Mapping[str, Any], leaves: list[Any], shapes: Any) -> Found:
        known = form.known(inputs, shapes)
        if known is not None:
            return known
        if form.refused:
            reason = form.refused.get(_constants(leaves))
            if reason is not None:
                raise Uncaptured(reason)
        try:
            return form.find(inputs, leaves, shapes)
        except (Uncapturable, CaptureError, InputError, UnsupportedError, IndexError) as error:
            # a fault of this call, perhaps, and not of others like it; an index: or of the model on a mask of slots
            once = isinstance(error, (InputError, IndexError))
            self._check_state()
            if self.options.fallback == "error" and not once:
                raise
            reason = f"it cannot be captured: {str(error).splitlines()[0]}"
            constants = _constants(leaves)
            if not once:
                form.refused[constants] = reason
            raise Uncaptured(reason, form if once else None, constants) from error


def _constants(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """The leaves that every call of a capture repeats."""
    return tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))


def _leaves(inputs: Mapping[str, Any], memory: DecoderMemory, source: SourceMemory | None) -> list[Any]:
    """The leaves of the step's arguments, in the order of its signature."""
    leaves = [*inputs.values(), *memory.keys, *memory.values, torch.tensor(memory.slot), memory.kinds]
    leaves += [*source.keys, *source.values, source.filled] if source else [False]
    return [*leaves, *memory.scales]


def _static_layers(cache: Any) -> list[Any]:
    """The layers of a cache that have their length from the beginning."""
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if type(cache) is EncoderDecoderCache else [cache]
    return [layer for part in parts for layer in part.layers if isinstance(layer, StaticLayer)]


def output_of(found: Any, given: Mapping[str, Any], config: Any) -> Any:
    """A step's output as the model's: with the cache, and the logits that were asked for."""
    keep = kept_logits(given)
    if keep and found.logits.shape[1] > keep:
        found["logits"] = found.logits[:, -keep:]
    more = {CACHE: given[CACHE], **_of_the_encoder(given, found)}
    whole = type(found)(**{**found, **more})  # in the order of its fields, by which it is indexed
    wanted = given.get("return_dict")
    as_mapping = getattr(config, "return_dict", True) if wanted is None else wanted
    return whole if as_mapping else whole.to_tuple()


def _of_the_encoder(given: Mapping[str, Any], found: Any) -> dict[str, Any]:
    """What an encoder's output holds besides its last state, as the model passes it on."""
    encoded = given.get("encoder_outputs")
    fields = getattr(type(found), "__dataclass_fields__", {})
    if not isinstance(encoded, Mapping):
        return {}
    named = {f"encoder_{name}": value for name, value in encoded.items() if name != "last_hidden_state"}
    return {name: value for name, value in named.items() if name in fields and value is not None}
