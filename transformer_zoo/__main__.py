"""The command line: `python -m transformer_zoo {list, info, generate, chat, predict, embed, convert, compare, fit}`.

Exit codes: 0 done, 1 an error, 2 a wrong command or option, 3 (`fit` only) it does not fit.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from transformer_zoo.messages import by_options, fail, show_warnings_plainly
from transformer_zoo.options import names_of, unknown

# Modules that import jax are imported inside functions, so that --help is quick.

PROGRAM = "python -m transformer_zoo"
Name = tyro.conf.Positional[str]
OPTIONS = {"num_beams": "beams", "num_return_sequences": "answers"}
"""Settings -> options of `generate`, where the names differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfFamily:
    """A command about a model by name."""

    family: str | None = None
    """The model's family, as `list` shows them, for a config.json without model_type. None: config.json has one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfWeights(OfFamily):
    """A command about the weights of a model by name."""

    step: int | Literal["best"] | None = None
    """For a run: the step of the checkpoint, or the best by the run's evaluation.best. None: the latest."""

    def load(self, name: str, dtype: str | None, **settings: Any) -> Any:
        """A run's model or a published one, with parameters and computation in this dtype; settings: of `runs.load`."""
        from transformer_zoo import runs

        return runs.load(name, dtype=dtype, param_dtype=dtype, family=self.family, step=self.step, **settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfInference(OfWeights):
    """A command that computes with a model by name."""

    quantize: Literal["int8", "int4", "nf4"] | None = None
    """Hold the model's matrices in few bits, which saves memory and takes more time. None: as they are."""

    def load(self, name: str, dtype: str | None, **settings: Any) -> Any:
        return super().load(name, dtype, quantize=self.quantize, **settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfWriting(OfInference):
    """A command by which a model writes text."""

    temperature: float | None = None
    """0: always the most probable token. Above 0: sample; the logits are divided by it. None: as in the model's
    generation_config.json, or else 0."""
    top_k: int | None = None
    """Sample from this many tokens, the most probable ones; 0: from all. None: as in
    generation_config.json, or else 50."""
    top_p: float | None = None
    """Sample from the fewest tokens that together have this probability."""
    repetition_penalty: float | None = None
    """Above 1: tokens that the text already has are less probable."""
    choices: tuple[str, ...] = ()
    """What the model writes is one of these; behind a prompt, begin them with a space where it is wanted."""
    pattern: str | None = None
    """What the model writes matches this regular expression as a whole."""
    schema: Path | None = None
    """A file with a JSON schema: what the model writes is JSON that it allows."""
    seed: int = 0
    """Seed of the random numbers."""
    dtype: str | None = None
    """Dtype of parameters and computation: float32, bfloat16 or float16. None: the run's; float32 otherwise."""

    def prepared(self, name: str, *settings: str) -> tuple[Any, dict[str, Any]]:
        """The model, and arguments of `zoo.generate`: the strategy, and what an answer must be. A constraint that
        cannot be is refused before the weights are read.

        Args:
            settings: of the strategy, besides those of all commands.
        """
        from transformer_zoo import json_files
        from transformer_zoo.generation import constraint, published

        names = ("temperature", "top_k", "top_p", "repetition_penalty", *settings)
        given = {name: getattr(self, OPTIONS.get(name, name)) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        schema = None if self.schema is None else json_files.read(self.schema, once=True)
        constrained = {"choices": self.choices or None, "pattern": self.pattern, "schema": schema}
        constraint.check(given, **constrained)
        m = self.load(name, self.dtype)
        spell = lambda name: "--" + OPTIONS.get(name, name).replace("_", "-")
        return m, {"sampling": published.build(m, given, spell=spell), **constrained}


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """The families and their published models."""

    def __call__(self) -> int:
        from rich.table import Table

        from transformer_zoo import registry, tables

        families = Table("family", "tasks")
        for name in registry.families():
            families.add_row(name, ", ".join(registry.family(name).PUBLISHED.tasks))
        presets = Table("family", "preset", "hub id")
        presets.add_column("parameters", justify="right")
        for name, preset in registry.presets().items():
            presets.add_row(preset.family, name, preset.hub_id, f"{preset.params:,}")
        tables.show(tables.console(), families, presets)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info(OfFamily):
    """A model's configuration, its parameters and the memory they take. No weights are read."""

    name: Name
    """A preset, a hub id, a folder with a config.json, or a run's folder."""

    def __call__(self) -> int:
        from rich.table import Table
        from rich.text import Text

        from transformer_zoo import registry, runs, tables, trees

        model = runs.model(self.name, self.family)
        family = registry.family_of(model.config)
        fields = Table("setting", "value", title=f"{self.name}: {family}, {model.task}")
        for field in dataclasses.fields(model.config):
            fields.add_row(field.name, Text(str(getattr(model.config, field.name))))

        shapes = trees.flatten(registry.param_shapes(model))
        table = Table("parameter", "shape")
        table.add_column("count", justify="right")
        for path, leaf in shapes.items():
            table.add_row(path, " x ".join(map(str, leaf.shape)), f"{leaf.size:,}")
        count = sum(leaf.size for leaf in shapes.values())
        table.add_section()
        table.add_row("in memory, the vocabulary padded", "", f"{count:,}")
        table.add_row("as published", "", f"{registry.count_params(model):,}")
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            table.add_row(f"memory in {dtype}", "", f"{count * size / 2**30:,.2f} GiB")
        tables.show(tables.console(), fields, table)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(OfWriting):
    """Continues a text; an encoder-decoder generates a new text from it."""

    name: Name
    """A preset, a hub id, a folder with published weights, or a run's folder."""
    prompt: str = ""
    """The text to continue, or the source to read. Empty: the start of a text."""
    max_new_tokens: int | None = None
    """The largest number of new tokens. None: that of the model's generation_config.json, or else 128."""
    beams: int | None = None
    """Beam search for the most probable text, with this number of beams."""
    length_penalty: float | None = None
    """For beam search: above 0 favours long texts, below 0 short ones."""
    answers: int | None = None
    """For beam search or sampling: the number of texts to print, of a search the best first."""
    no_repeat_ngram_size: int | None = None
    """No n-gram of this size may occur twice."""
    min_new_tokens: int | None = None
    """The text does not end before this number of new tokens."""
    language: str | None = None
    """The code of the language to generate, such as fr_XX, for a multilingual model."""
    source_language: str | None = None
    """The code of the prompt's language, for a tokenizer that marks it."""
    draft: str | None = None
    """A smaller model with the same tokenizer, by name, or prompt-lookup: proposes tokens, which takes less time on an
    accelerator where the model would choose them too. The text stays the same."""
    draft_tokens: int | None = None
    """The number of tokens that are proposed at a time. None: 4."""
    prefill_chunk: int | None = None
    """The number of the prompt's tokens that are read at a time, to bound the memory of a long one. None: all."""

    def __call__(self) -> int:
        import transformer_zoo as zoo
        from transformer_zoo import registry
        from transformer_zoo.generation.generate import PROMPT_LOOKUP

        m, options = self.prepared(
            self.name, "num_beams", "length_penalty", "num_return_sequences", "no_repeat_ngram_size", "min_new_tokens"
        )
        draft: Any = self.draft
        if draft not in (None, PROMPT_LOOKUP):
            draft = self.load(draft, self.dtype)
        answers = zoo.generate(
            m, self.prompt, max_new_tokens=self.max_new_tokens, seed=self.seed,
            language=self.language, source_language=self.source_language,
            draft=draft, draft_tokens=self.draft_tokens, prefill_chunk=self.prefill_chunk, **options,
        )  # fmt: skip
        prefix = "" if registry.is_encoder_decoder(m.config) else self.prompt
        for answer in [answers] if isinstance(answers, str) else answers:
            print(prefix + answer)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(OfWriting):
    """Talks with a model that was tuned on conversations: each line that it reads, from a terminal or a pipe, is a
    message. Ctrl-C ends an answer, Ctrl-D the conversation."""

    name: Name
    """A hub id, a folder with published weights, a GGUF file, or a run's folder."""
    system: str | None = None
    """What the system message tells the model. None: the chat template's own, if it has one."""
    max_new_tokens: int = 512
    """The largest number of tokens of an answer."""
    seed: int = 0
    """Seed of the random numbers; each answer has the next one."""

    def __call__(self) -> int:
        import transformer_zoo as zoo

        m, options = self.prepared(self.name)
        options["max_new_tokens"] = self.max_new_tokens
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        # A model or a system message that cannot be is refused before the first line is read.
        zoo.stream(m, [*messages, {"role": "user", "content": "Hello"}], **options)
        answers = 0
        while (line := _read_line("> ")) is not None:
            if not line.strip():
                continue
            asked = [*messages, {"role": "user", "content": line}]
            answer = ""
            try:
                for piece in zoo.stream(m, asked, seed=self.seed + answers, **options):
                    answer += piece
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                print(" [stopped]", end="")
            print(flush=True)
            messages = [*asked, {"role": "assistant", "content": answer}]
            answers += 1
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(OfInference):
    """Answers for texts by the model's task: labels, entities, answers, filled masks, ... A line of JSON for each, or
    the row of a table."""

    name: Name
    """A preset, a hub id, a folder with published weights, or a run's folder."""
    text: tuple[str, ...] = ()
    """The texts, each an input of its own."""
    source: str | None = None
    """Instead of `text`, a file: .csv and .tsv with a header, .jsonl, .parquet, or else one text a line; or a source as
    in a recipe, such as csv:reviews.csv:review, of which all is read. The columns are those of the task, such as text
    or question and context; for a run, those that it was trained on, if the file has them. Others are copied to
    a table of results."""
    output: Path | None = None
    """The file for the results, in the order of the texts: a table of texts and results if its name ends in .csv, or
    else a line of JSON each, null for a blank text. Where it has results already, those of the texts after them follow,
    if the file beside it, OUTPUT.record.json, tells of the same model, settings and texts. None: they are printed."""
    set: tuple[str, ...] = ()
    """Settings of the task, as NAME=VALUE: top_k=3 aggregation=none."""
    batch_size: int = 32
    """Rows at a time."""
    dtype: str | None = None
    """Dtype of parameters and computation: float32, bfloat16 or float16. None: the run's; float32 otherwise."""

    def __call__(self) -> int:
        from rich.console import Console
        from rich.progress import track

        from transformer_zoo import names, runs
        from transformer_zoo.prediction import files, record
        from transformer_zoo.prediction.predict import reader_of

        if (self.source is None) == (not self.text):
            raise ValueError("give either --text, or --source with a file that has one text a line")
        if self.output is not None:
            files.check_output(self.output, self.source)
        settings = dict(map(_setting, self.set))
        if "batch_size" in settings:
            raise ValueError("--set batch_size: give --batch-size")
        m = self.load(self.name, self.dtype)
        try:
            reader = reader_of(m, **settings)
        except TypeError as error:
            raise ValueError(f"--set: {error}") from None
        if self.source is None:
            inputs = files.check(self.text, [f"text {i}" for i in range(len(self.text))], reader, "--text")
        else:
            run = runs.read(self.name) if names.is_run(self.name) else None
            table = self.output is not None and self.output.suffix == ".csv"
            inputs = files.read(self.source, reader, run, others=table)
        if self.output is None:
            for result in files.results_of(m, reader, inputs, batch_size=self.batch_size):
                print(files.line(result))
            return 0
        columns = files.columns_of(m, reader, inputs, self.output)
        made = record.of(m, reader, inputs, model=self.name, source=self.source or "--text")
        earlier = files.begin(self.output, made, inputs, columns)
        written = files.write(m, reader, inputs, self.output, earlier, batch_size=self.batch_size, columns=columns)
        console = Console(stderr=True)
        try:
            for _ in track(written, "predicting", total=len(inputs), console=console):
                pass
        except KeyboardInterrupt:
            console.print(f"{self.output} keeps the results so far: the same command goes on behind them", markup=False)
            raise
        before = f", {earlier} of which it had before" if earlier else ""
        print(f"{self.output} holds the results of {len(inputs)} texts{before}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed(OfInference):
    """Computes a vector for each text. Similar texts have similar vectors."""

    name: Name
    """A hub id or a folder, of sentence-transformers or of any encoder; or a run's folder."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts."""
    input: Path | None = None
    """A file with one text a line, instead of `texts`."""
    output: Path | None = None
    """The file for the vectors, a numpy array [texts, width]. None: they are printed."""
    similar: bool = False
    """Print for each text the most similar other text and their similarity, by default the cosine, instead of the
    vectors."""
    prompt: str | None = None
    """The name of the model's prompt to put before each text, such as query."""
    prompt_text: str | None = None
    """Any other text to put before each text, instead of --prompt."""
    truncate_dim: int | None = None
    """Keep this many of the first numbers of each vector. None: as many as the model says, or else all."""
    normalize_embeddings: bool = False
    """Divide each vector by its length."""
    precision: Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"] = "float32"
    """The type of the numbers. int8 and uint8 divide the range of each number into 256 steps; binary and ubinary keep
    the signs, eight to a number."""
    ranges: Path | None = None
    """For int8 and uint8, a file with a numpy array [2, width]: the least and the greatest value of each number. Only
    vectors of the same ranges can be compared. None: the ranges of these texts; with --output vectors.npy, they are
    written to vectors.ranges.npy."""
    dtype: str | None = None
    """Dtype of parameters and computation: float32, bfloat16 or float16. None: the run's; float32 otherwise."""

    def __call__(self) -> int:
        import numpy as np

        from transformer_zoo import names, vectors
        from transformer_zoo.embedding import load_embedder
        from transformer_zoo.prediction import files

        if (self.input is None) == (not self.texts):
            raise ValueError("give either texts, or --input with a file that has one text a line")
        if self.output is not None:
            files.check_output(self.output, self.input)
        texts = self.texts if self.input is None else files.lines(self.input)
        if self.similar and len(texts) < 2:
            raise ValueError("--similar compares texts: give at least two")
        if self.similar and self.precision not in ("float32", "float16"):
            raise ValueError(f"--similar compares float vectors: leave out --precision {self.precision}")
        own_ranges = self.precision in vectors.CALIBRATED and self.ranges is None
        if own_ranges and len(texts) == 1:
            raise ValueError(f"--precision {self.precision} of a single text needs --ranges")
        ranges = None if self.ranges is None else vectors.read_ranges(self.ranges)
        if self.step is not None or names.is_run(self.name):
            model = OfWeights.load(self, self.name, self.dtype)
        else:
            model = self.name
        embedder = load_embedder(model, dtype=self.dtype or "float32", family=self.family)
        embedder = embedder if self.quantize is None else embedder.quantize(self.quantize)
        vectors_ND = embedder(
            texts, prompt=self.prompt, prompt_text=self.prompt_text, truncate_dim=self.truncate_dim,
            normalize_embeddings=self.normalize_embeddings, ranges=ranges,
            precision="float32" if own_ranges and self.output is not None else self.precision,
        )  # fmt: skip
        if own_ranges and self.output is not None:
            ranges = np.stack([vectors_ND.min(axis=0), vectors_ND.max(axis=0)])
            vectors_ND = vectors.quantize_embeddings(vectors_ND, self.precision, ranges=ranges)
        if self.output is not None:
            with self.output.open("wb") as file:  # numpy adds .npy to a name that lacks it
                np.save(file, vectors_ND)
            print(f"{self.output} holds {len(vectors_ND)} vectors of {vectors_ND.shape[1]} numbers")
            if own_ranges:
                np.save(beside := self.output.with_suffix(".ranges.npy"), ranges)
                print(f"{beside} holds their ranges, for the --ranges of others that are to be compared with them")
        if self.similar:
            scores_NN = embedder.similarity(vectors_ND, vectors_ND)
            np.fill_diagonal(scores_NN, -np.inf)
            for text, nearest, scores_N in zip(texts, scores_NN.argmax(axis=1), scores_NN):
                print(f"{scores_N[nearest]:.3f}  {text}  ~  {texts[nearest]}")
        elif self.output is None:
            for vector_D in vectors_ND:
                print(" ".join(f"{x:.6g}" for x in vector_D))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(OfWeights):
    """Writes a model in the Hugging Face layout, or as a GGUF file."""

    source: Name
    """A run's folder, a preset, a hub id, or a folder with published weights."""
    target: tyro.conf.Positional[Path]
    """The folder to write: config.json, model.safetensors, the tokenizer's files; of a run with adapters
    adapter_config.json and adapter_model.safetensors. Or a file that ends in .gguf, with the whole model."""
    merge: bool = False
    """Of a run with adapters, write the whole model with the adapters in it."""
    overwrite: bool = False
    """Replace another model that is there. The same one, by its settings, may always be written again."""
    dtype: str | None = None
    """Dtype of the weights in the files: float32, bfloat16 or float16, in a GGUF file also q8_0. None: the run's;
    float32 otherwise, and in a GGUF file."""

    def __call__(self) -> int:
        import transformer_zoo as zoo
        from transformer_zoo import folders, names, pretrained, runs

        step = runs.step_of(self.source, self.step) if names.is_run(self.source) else None
        if names.is_run(self.target) and folders.folder(self.source).resolve() != self.target.expanduser().resolve():
            raise ValueError(
                f"{self.target} holds another run, and files of two models must not mix: name another folder"
            )
        is_file = self.target.suffix == ".gguf"
        has_adapter = step is not None and runs.read(self.source).lora.rank is not None
        if self.merge and not has_adapter:
            raise ValueError(f"--merge is for a run with adapters, and {self.source} has none: leave it out")
        # What cannot be written is refused before there are weights.
        model = runs.model(self.source, self.family)
        if is_file:
            pretrained.check_gguf(self.target, model, self.dtype or "float32")
        elif not self.overwrite:
            pretrained.check_target(self.target, model, adapter=has_adapter and not self.merge)
        m = self.load(self.source, None if is_file else self.dtype)
        if is_file:
            zoo.save_gguf(self.target, m, dtype=self.dtype or "float32", overwrite=self.overwrite)
            written = ("configuration, weights" + (", tokenizer" if m.tokenizer is not None else ""),)
        else:
            save = zoo.save_pretrained if m.adapter is None or self.merge else zoo.save_adapter
            written = save(self.target, m, overwrite=self.overwrite)
        what = self.source if step is None else f"{self.source}, step {step}"
        print(f"{self.target} holds {what}: {', '.join(written)}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Runs side by side: the settings that differ, steps, final and best measures, time; and a picture of their curves.

    The best is first. Time is that of the training steps alone.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs, such as runs/sweep_*."""
    metric: str | None = None
    """The measure to compare by, on held-out documents or else in training. None: the runs' evaluation.best, or else
    loss."""
    direction: Literal["lowest", "highest"] | None = None
    """Which of its values is best. None: as its name tells."""
    output: Path = Path("compare.png")
    """The file for the picture."""

    def __call__(self) -> int:
        from transformer_zoo import comparison, folders, tables

        if not self.runs:
            raise ValueError("give the folders of the runs to compare, such as runs/sweep_*")
        folders.check_file(self.output, "--output")
        comparison.compare(self.runs, self.metric, self.output, tables.console(), self.direction)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(OfFamily):
    """Compiles a recipe's train step, or generation with a model, for a TPU topology, with no TPU attached, and reports
    whether it fits."""

    name: Name
    """A recipe such as configs/gpt2_stdlib.py; or, for generation, a preset, a hub id, a folder with a config.json, or
    a run's folder."""
    topology: str
    """A TPU topology such as v5e:4x4."""
    settings: tyro.conf.Positional[tuple[str, ...]] = ()
    """After `--`: settings of the recipe to override, as for train.py; or of generation, such as
    --batch-size 8 --length 512 --max-new-tokens 128 --beams 4 --mesh.tensor 8."""

    def __call__(self) -> int:
        if self.name.endswith(".py"):
            from transformer_zoo import commands

            if self.family is not None:
                raise ValueError(f"--family is for a model's name, and {self.name} is a recipe: leave it out")
            return commands.train([self.name, "--aot", self.topology, *self.settings])
        from transformer_zoo import fit, runs

        program = f"{PROGRAM} fit {self.name} --topology {self.topology} --"
        writing = tyro.cli(fit.Writing, args=self.settings, prog=program)
        return fit.main_writing(runs.model(self.name, self.family), writing, self.topology)


COMMANDS = {
    "list": List, "info": Info, "generate": Generate, "chat": Chat, "predict": Predict, "embed": Embed,
    "convert": Convert, "compare": Compare, "fit": Fit,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Runs a command; an error that a user can correct is printed as one message, without a traceback."""
    if (wrong := _misspelt(arguments)) is not None:
        return fail(wrong, code=2)
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, args=arguments or ["--help"], prog=PROGRAM, description="Models of the zoo, from the command line."
    )
    try:
        return command()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        return fail(by_options(error, command, OPTIONS))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _misspelt(arguments: list[str]) -> str | None:
    """What is wrong with an unknown command or option, in one line."""
    if not arguments or arguments[0].startswith("-"):
        return None
    command, *rest = arguments
    if command not in COMMANDS:
        from transformer_zoo.trees import nearest

        return f"there is no command {command!r}.{nearest(command, COMMANDS) or f' Try {PROGRAM} --help'}"
    wrong = unknown(rest, names_of(COMMANDS[command]))
    return None if wrong is None else f"{command}: {wrong}"


def _read_line(prompt: str) -> str | None:
    """A line from the standard input; None: it has ended. Only a terminal shows the prompt."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        print()
        return None


def _setting(text: str) -> tuple[str, Any]:
    """A name and its value, from NAME=VALUE. The value is JSON, or else text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: give NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    show_warnings_plainly()
    sys.exit(main(sys.argv[1:]))
