"""What a run reads, checked before anything heavy starts. Opens manifests, no shard; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoint.manifest import MIN_PROBE_TOKENS
from launch.config import TrainConfig, TrainingError
from launch.data.mixture import MAX_PERIOD
from launch.data.packing import samples_in
from launch.data.run_samples import dataset_directories, stages_of
from launch.data.schedule import Schedule
from launch.trainer.prompts import prompt_problems
from model.config import SmolLM2Config
from model.hf_config import WeightsError, read_config
from pipeline.shards.format import TOKENIZER_FILE, DatasetManifest, Split, TokenizerRecord, digest_file, read_manifest

NOTABLE_ROUNDING = 0.01  # of a source's share: more is told
# up to four epochs are worth nearly what fresh text is worth (Muennighoff et al., arXiv:2305.16264)
NOTABLE_EPOCHS = 4.0
USUAL_PADDING = 128  # embeddings are padded to a multiple of this, at most: fewer ids without a token are meant
# positions and rope_theta are free: a longer context is trained by changing them
_FIXED_BY_WEIGHTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip
MORE_VALIDATION = "raise validation_fraction in the dataset's pipeline config and make it anew (remove its folder)"


@dataclass(frozen=True)
class Inputs:
    """The identity of a run's data. `tokenizer_file` is the first source's copy of the tokenizer, if it has one;
    `remarks` are lines for the user on what is right, but perhaps not what was meant."""

    dataset_digests: dict[str, str]
    tokenizer: TokenizerRecord
    tokenizer_file: Path | None
    remarks: tuple[str, ...] = ()

    def differences(self, first_ranks: Mapping[str, str]) -> list[str]:
        """One line for each dataset that is another one here than on rank 0, by its digests."""
        here = ((name, digest, first_ranks.get(name, "none")) for name, digest in self.dataset_digests.items())
        return [
            f"dataset {name} has other contents here ({digest[:19]}…) than on rank 0 ({first[:19]}…); give every node "
            "the same dataset, and replace none while a run starts"
            for name, digest, first in here
            if digest != first
        ]


def read_inputs(config: TrainConfig) -> Inputs:
    """Raises DatasetError for a dataset that is missing, TrainingError, with all problems, for one unfit."""
    folders = dataset_directories(config)
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    first = config.data.sources[0]
    tokenizer_file = folders[first.name] / TOKENIZER_FILE
    problems = [
        *_tokenizer_problems(config, manifests),
        *_size_problems(config, manifests),
        *_prompt_problems(config, tokenizer_file),
    ]
    if problems:
        raise TrainingError("\n".join(problems))
    return Inputs(
        dataset_digests={name: manifest.digest() for name, manifest in manifests.items()},
        tokenizer=manifests[first.name].tokenizer,
        tokenizer_file=tokenizer_file if tokenizer_file.is_file() else None,
        remarks=tuple(_remarks(config, manifests)),
    )


def check_init_from(config: TrainConfig) -> None:
    """For a start at step 0: a resume does not read the weights that the run began with. Raises TrainingError.

    Looks at config.json alone; the weights' own names and shapes are compared with it as rank 0 opens them.
    """
    if config.init_from is None:
        return
    if not config.init_from.is_dir():
        what = "a file" if config.init_from.is_file() else "not on this machine, and nothing is fetched from a hub"
        raise TrainingError(f"init_from={config.init_from} is {what}; name a Hugging Face model directory")
    if not (config.init_from / "config.json").is_file():
        raise TrainingError(f"init_from={config.init_from} has no config.json; name a Hugging Face model directory")
    try:
        weights = read_config(config.init_from)
    except WeightsError as error:
        raise TrainingError(str(error)) from None
    check_same_model(config, weights)


def check_same_model(config: TrainConfig, weights: SmolLM2Config) -> None:
    """Raises TrainingError, a line for each field in which pretrained weights are of another model."""
    problems = [
        f"model.{field}={getattr(config.model, field)} but init_from={config.init_from} has {getattr(weights, field)}; "
        f"set model.{field} to it"
        for field in _FIXED_BY_WEIGHTS
        if getattr(config.model, field) != getattr(weights, field)
    ]
    if problems:
        raise TrainingError("\n".join(problems))


def probe_rows(sequence_length: int) -> int:
    """Rows of the probe: enough for `MIN_PROBE_TOKENS`."""
    return math.ceil(MIN_PROBE_TOKENS / sequence_length)


def _tokenizer_problems(config: TrainConfig, manifests: dict[str, DatasetManifest]) -> Iterable[str]:
    first_name, first = next(iter(manifests.items()))
    wanted, origin = first.tokenizer.digest, f"that of {first_name}"
    if config.data.tokenizer is not None:
        try:
            wanted, origin = digest_file(config.data.tokenizer), f"data.tokenizer={config.data.tokenizer}"
        except OSError as error:
            yield f"data.tokenizer={config.data.tokenizer}: {error.strerror}; name the tokenizer.json of the datasets"
            return
    for name, manifest in manifests.items():
        if manifest.tokenizer.digest != wanted:
            yield (
                f"dataset {name} was made with another tokenizer ({manifest.tokenizer.digest[:19]}…) than {origin} "
                f"({wanted[:19]}…); encode it again with that tokenizer, or take it out of data.sources"
            )
    tokenizer, model = first.tokenizer, config.model
    if tokenizer.vocab_size > model.vocab_size:
        yield (
            f"model.vocab_size={model.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}; "
            f"use model.vocab_size={tokenizer.vocab_size} or the tokenizer that belongs to the model"
        )
    if tokenizer.eos_token_id != model.eos_token_id:
        yield (
            f"model.eos_token_id={model.eos_token_id} but the datasets' documents end in id {tokenizer.eos_token_id}; "
            f"set model.eos_token_id={tokenizer.eos_token_id}"
        )


def _size_problems(config: TrainConfig, manifests: dict[str, DatasetManifest]) -> Iterable[str]:
    length, problems = config.data.sequence_length, False
    for split, kind, fix in (
        ("train", "training", "use a shorter data.sequence_length or more data"),
        ("validation", "validation", MORE_VALIDATION),
    ):
        for name, manifest in manifests.items():
            tokens = manifest.splits[split].tokens if split in manifest.splits else 0
            if tokens <= length:
                problems = True
                yield (
                    f"dataset {name} has {tokens:,} {kind} tokens, fewer than one sequence of {length} and the token "
                    f"after it; {fix}"
                )
    if problems:
        return
    available, scarcest = min(_first_repeats(config, manifests, "validation"))
    if available < probe_rows(length):
        yield (
            f"the validation splits hold {available} sequences of {length} tokens until {scarcest} would repeat, "
            f"wanted at least {probe_rows(length)} (the proof of an export needs {MIN_PROBE_TOKENS:,} tokens); "
            f"{MORE_VALIDATION}"
        )
    for name, epochs in _epochs(config, manifests):
        allowed = next(source.max_epochs for source in config.data.sources if source.name == name)
        if allowed is not None and epochs > allowed:
            yield (
                f"dataset {name} would be read {epochs:.2f} times within steps={config.steps:,}, more than its "
                f"max_epochs={allowed:g}; give it less weight or more data, or raise max_epochs"
            )


def _prompt_problems(config: TrainConfig, tokenizer_file: Path) -> Iterable[str]:
    if config.validation.samples is None:
        return ()
    file = tokenizer_file if tokenizer_file.is_file() else None
    positions = config.model.max_position_embeddings
    return prompt_problems(config.validation.samples, tokenizer_file=file, positions=positions)


def _remarks(config: TrainConfig, manifests: dict[str, DatasetManifest]) -> Iterable[str]:
    tokens, ids = next(iter(manifests.values())).tokenizer.vocab_size, config.model.vocab_size
    if ids - tokens >= USUAL_PADDING:
        yield (
            f"the datasets' tokenizer has {tokens:,} tokens and model.vocab_size={ids}: {ids - tokens:,} ids have no "
            "token and are never read; is it the tokenizer that belongs to the model?"
        )
    available, scarcest = min(_first_repeats(config, manifests, "validation"))
    wanted = config.validation.sequences
    if available < wanted:
        yield (
            f"validation reads {available:,} sequences, not validation.sequences={wanted:,}: {scarcest} has no more; "
            "for more, raise validation_fraction in its pipeline config"
        )
    repeats = [
        f"{name} begins epoch 2 at step {sample // config.samples_per_step + 1:,}"
        for sample, name in sorted(_first_repeats(config, manifests, "train"))
        if sample < config.steps * config.samples_per_step
    ]
    if repeats:
        more = f", and {len(repeats) - 10} more sources" if len(repeats) > 10 else ""
        yield f"training data repeats within steps={config.steps:,}: {', '.join(repeats[:10])}{more}"
    for name, epochs in _epochs(config, manifests):
        if epochs > NOTABLE_EPOCHS:
            yield (
                f"{name} is read {epochs:.1f} times within steps={config.steps:,}: above {NOTABLE_EPOCHS:g} epochs "
                "repeated text teaches little (arXiv:2305.16264); give it less weight, or more data"
            )
    yield from _rounding_remarks(config)


def _rounding_remarks(config: TrainConfig) -> Iterable[str]:
    schedule = _schedule(config, "train")
    names = [source.name for source in config.data.sources]
    for number, (stage, mixture) in enumerate(zip(schedule.stages, schedule.mixtures, strict=True)):
        where = f" in data.stages.{number}" if config.data.stages else ""
        total, used = sum(stage.weights), iter(mixture.weights)
        for name, weight in zip(names, stage.weights, strict=True):
            wanted, share = weight / total, next(used) / mixture.period if weight else 0.0
            if abs(share - wanted) > NOTABLE_ROUNDING * wanted:
                yield (
                    f"{name} is {share:.3%} of the mixture{where} and not {wanted:.3%}: shares are whole "
                    f"1/{MAX_PERIOD:,}"
                )


def _first_repeats(
    config: TrainConfig, manifests: dict[str, DatasetManifest], split: Split
) -> Iterable[tuple[int, str]]:
    """The sample of the run, or of validation, that begins a source's second epoch, and the source's name."""
    repeats = _schedule(config, split).first_repeats(_sizes(config, manifests, split))
    return ((repeat, name) for repeat, name in zip(repeats, manifests, strict=True) if repeat is not None)


def _epochs(config: TrainConfig, manifests: dict[str, DatasetManifest]) -> Iterable[tuple[str, float]]:
    """How often the run goes through each source."""
    counts = _schedule(config, "train").counts(config.steps * config.samples_per_step).tolist()
    sizes = _sizes(config, manifests, "train")
    return ((name, count / size) for name, count, size in zip(manifests, counts, sizes, strict=True))


def _sizes(config: TrainConfig, manifests: dict[str, DatasetManifest], split: Split) -> list[int]:
    return [samples_in(manifest.splits[split].tokens, config.data.sequence_length) for manifest in manifests.values()]


def _schedule(config: TrainConfig, split: Split) -> Schedule:
    return Schedule(stages_of(config, split))
