"""README.md of a converted model: what it was made from, by which recipe and with what."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mac.convert.abilities import NO_PREDICTION
from r1mac.convert.journal import Journal, digest_of
from r1mac.errors import writing_to
from r1mac.formats.folder import INDEX_NAME, read_json
from r1mac.formats.quality import Quality, as_rows
from r1mac.plan.memory import Quantization
from r1mac.plan.recipe import WIDE_BITS
from r1mac.units import format_count, format_size

CARD_NAME = "README.md"

# What a source's card says of its licence goes over into the result's, line by line.
_LICENCE_FIELDS = ("license", "license_name", "license_link")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"([A-Za-z_]+):")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card says.

    Attributes:
        title: the model's name.
        source: a Hub repository, or the name of a folder or file.
        is_repo: which of both.
        revision: the repository's commit, where it is known.
        identity: one digest of the source's files or of their list of tensors.
        recipe: the recipe's fields, as the record of the conversion has them.
        made_with: versions of programs.
        weight_bytes: of all tensors.
        parameter_count: values before quantisation.
        licence: lines of the source's front matter.
        adapters: names of the adapters that were merged into the source.
        leaves_out: what of the source was not converted, though it could have been.
        quality: what was measured of the result; None where that was not asked for.
    """

    title: str
    source: str
    is_repo: bool
    revision: str | None
    identity: str
    recipe: Mapping[str, Any]
    made_with: Mapping[str, str]
    weight_bytes: int
    parameter_count: int
    licence: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    leaves_out: tuple[str, ...] = ()
    quality: Quality | None = None


def write_card(
    folder: Path,
    *,
    title: str,
    repo: str | None,
    revision: str | None,
    source_card: Path | None,
    quality: Quality | None = None,
) -> None:
    """Write README.md into the converted model *folder*, from the record of its conversion.

    Args:
        folder: a model whose conversion has ended.
        title: its name.
        repo: the Hub repository that it was made from, if it was one.
        revision: its commit.
        source_card: the source's README.md, which need not exist.
        quality: what was measured of it.

    Raises:
        BadCheckpoint: *folder* has no record of a conversion.
        DiskFull, NotWritable: as they say.
    """
    record = Journal.load(folder)
    totals = read_json(folder / INDEX_NAME)["metadata"]
    # A path would tell strangers how this computer's folders are called.
    base, *adapters = (Path(part).name for part in record.plan.source.split(" + "))
    facts = CardFacts(
        title=title,
        source=repo or base,
        adapters=tuple(adapters),
        is_repo=repo is not None,
        revision=revision,
        identity=digest_of(f"{name} {text}" for name, text in sorted(record.plan.identity.items())),
        recipe=record.plan.recipe,
        made_with=record.made_with,
        leaves_out=tuple(name for name in record.plan.identity if name == NO_PREDICTION),
        weight_bytes=int(totals["total_size"]),
        parameter_count=int(totals["total_parameters"]),
        licence=_read_licence(source_card) if source_card is not None else (),
        quality=quality,
    )
    with writing_to(folder):
        (folder / CARD_NAME).write_text(format_card(facts), encoding="utf-8")


def format_card(facts: CardFacts) -> str:
    """Return the card as Markdown with the Hub's front matter."""
    return "\n".join([*_front_matter(facts), "", *_body(facts), ""])


def licence_lines(card: str) -> tuple[str, ...]:
    """Return the lines about the licence in the front matter of a model's *card*; none where it has no such."""
    match = _FRONT_MATTER.match(card)
    found, wanted = [], False
    for line in match[1].splitlines() if match else ():
        if field := _FIELD.match(line):
            wanted = field[1] in _LICENCE_FIELDS
        if wanted and line.strip():
            found.append(line.rstrip())
    return tuple(found)


def format_recipe(fields: Mapping[str, Any]) -> str:
    """Return a recipe's *fields* (``dataclasses.asdict`` through JSON) as the TOML file that says the same."""
    lines = [f"{name} = {json.dumps(fields[name])}" for name in ("models", "summary", "nominal_bits") if fields[name]]
    if fields["dtype"]:
        lines.append(f'dtype = "{fields["dtype"]}"')
    lines += ["", "[quantize]", *_width_lines(Quantization(*fields["default"]))]
    for override in fields["overrides"]:
        lines += ["", "[[quantize.override]]", f"tensors = {json.dumps(override['tensors'])}"]
        lines += [f"layers = {json.dumps(override['layers'])}"] if override["layers"] else []
        lines += _width_lines(Quantization(*override["quantization"]))
    return "\n".join(lines).strip() + "\n"


def _width_lines(width: Quantization) -> list[str]:
    if width.mode != "affine":
        return [f'mode = "{width.mode}"']
    return [f"bits = {width.bits}", *([f"group_size = {width.group_size}"] if width.bits < WIDE_BITS else [])]


def _front_matter(facts: CardFacts) -> Iterator[str]:
    yield from ("---", "library_name: mlx", "pipeline_tag: text-generation")
    if facts.is_repo:
        yield f"base_model: {facts.source}"
        yield from ["base_model_relation: quantized"] if _is_quantized(facts.recipe) else []
    yield from facts.licence
    yield from ("tags:", "- mlx", "- r1mac", "---")


def _body(facts: CardFacts) -> Iterator[str]:
    bits = facts.weight_bytes * 8 / facts.parameter_count
    yield f"# {facts.title}"
    yield ""
    yield f"{_linked(facts)}, converted to MLX at {bits:.2f} bits a weight by r1mac."
    yield ""
    yield from ("| | |", "|---|---|")
    at = f" at commit `{facts.revision}`" if facts.revision else ""
    yield f"| made from | {_linked(facts)}{at} |"
    yield from (f"| adapter merged into it | `{_cell(name)}` |" for name in facts.adapters)
    yield f"| digest of the source | `{facts.identity}` |"
    yield from (f"| not converted | {name} |" for name in facts.leaves_out)
    yield f"| recipe | {_cell(_recipe_words(facts.recipe))} |"
    size, count = format_size(facts.weight_bytes), format_count(facts.parameter_count)
    yield f"| weights | {size} ({facts.weight_bytes:,} bytes), {count} parameters, {bits:.3f} bits each |"
    if facts.quality is not None:
        yield from (f"| {name} | {_cell(text)} |" for name, text in as_rows(facts.quality))
    yield f"| made with | {', '.join(f'{name} {version}' for name, version in facts.made_with.items())} |"
    yield ""
    yield from ("## Run it", "", "```sh", "MODEL=.  # this folder, or the name of this repository")
    yield 'r1mac run "$MODEL" "Why is the sky blue?"'
    yield 'mlx_lm.generate --model "$MODEL" --prompt "Why is the sky blue?" --max-tokens 4000'
    yield "```"
    yield ""
    yield from ("## Recipe", "", "```toml", format_recipe(facts.recipe).rstrip(), "```", "")
    yield "## Licence"
    yield ""
    yield "That of the source; its licence files, where it has any, are beside this one."


def _recipe_words(recipe: Mapping[str, Any]) -> str:
    width = Quantization(*recipe["default"])
    if recipe["overrides"] or recipe["summary"] or width.bits >= WIDE_BITS:
        return str(recipe["summary"] or recipe["name"])
    kind = "" if width.mode == "affine" else f" {width.mode}"
    return f"{recipe['name']}:{kind} {width.bits} bits for every matrix, in groups of {width.group_size}"


def _linked(facts: CardFacts) -> str:
    if facts.is_repo:
        return f"[{facts.source}](https://huggingface.co/{facts.source})"
    return f"`{_cell(facts.source)}`"


def _cell(text: str) -> str:
    """Return *text* as part of a table's cell."""
    return " ".join(text.split()).replace("|", "/").replace("`", "'")


def _is_quantized(recipe: Mapping[str, Any]) -> bool:
    widths: Sequence[Any] = [recipe["default"], *(override["quantization"] for override in recipe["overrides"])]
    return any(Quantization(*width).bits < WIDE_BITS for width in widths)


def _read_licence(card: Path) -> tuple[str, ...]:
    try:
        return licence_lines(card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ()
