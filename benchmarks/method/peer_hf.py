"""The peer: one ISARA iteration as users of transformers and PEFT run it, timed by stage.

    OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=0 python -m benchmarks.method.peer_hf \
        --workload=FILE.npz --model=DIR --dtype=float32 --batch=64 --threads=2

does the work recorded in FILE (`benchmarks.method.iteration` writes it) with `generate`, PEFT's
LoRA and AdamW, and prints one JSON line last. It runs in a process of its own: torch and JAX never
share one. Requests are taken in the order given, in batches that end with their longest row; every
row ends after as many tokens as our sampler drew for it, so that both sides do equal work. What was
done is counted where it was done, for the benchmark to compare.

DIR is a Hugging Face folder; one with a config.json alone gives random weights of that shape.
"""

import contextlib
import dataclasses
import json
import pathlib
import resource
import time
from collections.abc import Iterator

import numpy as np
import peft
import torch
import transformers
from absl import app, flags

_WORKLOAD = flags.DEFINE_string("workload", None, "The recorded work, .npz.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the base weights.")
_BATCH = flags.DEFINE_integer("batch", 64, "Requests generated at once.")
_SEARCH_BATCH = flags.DEFINE_list(
    "search_batch", [], "Batches to try on the answers; the one with most tokens a second is used."
)
_THREADS = flags.DEFINE_integer("threads", 2, "Of torch, on a CPU.")
_CACHE = flags.DEFINE_enum(
    "cache", "dynamic", ("dynamic", "static", "fastest"), "Of `generate`; `fastest`: of the two."
)
_MERGE = flags.DEFINE_bool(
    "merge", None, "Merge the adapter for generation. Default: in float32, where it loses nothing."
)
_AUTOCAST = flags.DEFINE_bool("autocast", False, "Train under torch.autocast to bfloat16.")
_CHECKPOINTING = flags.DEFINE_bool("checkpointing", False, "Compute blocks again for the gradient.")

HF_NAMES = {
    "llama": {
        "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj",
        "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    },
    "opt": {
        "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj", "up": "fc1", "down": "fc2",
    },
}  # fmt: skip
WARM_TOKENS = 32  # of a prompt, when a stage is warmed up
GREEDY_ROWS, GREEDY_TOKENS = 4, 8

Workload = dict[str, np.ndarray]


class RowLengths(transformers.StoppingCriteria):
    """Ends each row after its own number of tokens; notes when the first token was there."""

    eos_token_id = None  # `generate` pads ended rows only if a criterion has this attribute

    def __init__(self, wanted: torch.Tensor, prompt_width: int) -> None:
        self.wanted, self.prompt_width = wanted, prompt_width
        self.first_token = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: None, **_: object) -> torch.Tensor:
        drawn = input_ids.shape[1] - self.prompt_width
        if drawn == 1:
            self.first_token = now()
        return self.wanted <= drawn


@dataclasses.dataclass(frozen=True)
class Requests:
    """Right-padded `prompts [N, P]` of `lengths [N]`; tokens `wanted [N]`; how to sample."""

    prompts: np.ndarray
    lengths: np.ndarray
    wanted: np.ndarray
    sampling: dict[str, bool | int | float]

    @classmethod
    def of(cls, workload: Workload, stage: str) -> "Requests":
        """The requests of `question` or `answer`."""
        sampling: dict[str, bool | int | float] = {"do_sample": False}
        if workload[f"{stage}_temperature"] > 0:
            sampling = {
                "do_sample": True,
                "temperature": float(workload[f"{stage}_temperature"]),
                "top_k": int(workload[f"{stage}_top_k"]),
                "top_p": float(workload[f"{stage}_top_p"]),
            }
        return cls(
            workload[f"{stage}_prompts"],
            workload[f"{stage}_prompt_lengths"],
            workload[f"{stage}_lengths"],
            sampling,
        )

    def rows(self, begin: int, end: int) -> "Requests":
        part = slice(begin, end)
        return Requests(self.prompts[part], self.lengths[part], self.wanted[part], self.sampling)

    def shortened(self, n_rows: int) -> "Requests":
        """A small piece of the first rows, to warm up with."""
        lengths = np.minimum(self.lengths[:n_rows], WARM_TOKENS)
        wanted = np.minimum(self.wanted[:n_rows], 2)
        return Requests(self.prompts[:n_rows], lengths, wanted, self.sampling)

    def left_padded(self, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids `[N, longest]`, and the mask of what is no padding."""
        width = self.lengths.max()
        column = np.arange(width) - (width - self.lengths)[:, None]
        ids = np.take_along_axis(self.prompts, np.maximum(column, 0), axis=1)
        return np.where(column >= 0, ids, pad), column >= 0


@dataclasses.dataclass
class Generated:
    """Tokens read and drawn; rows times steps; seconds to each batch's first token and after."""

    prompt_tokens: int = 0
    tokens: int = 0
    row_steps: int = 0
    prefill: float = 0.0
    decode: float = 0.0


class Peer:
    """The model with its adapter, and the stages of an iteration.

    Attributes:
      batch: requests generated at once, questions embedded at once.
      cache: of `generate`, dynamic or static.
    """

    def __init__(self, folder: str, workload: Workload) -> None:
        self.workload, self.pad = workload, int(workload["eos"])
        self.batch, self.cache = _BATCH.value, "dynamic"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = load(folder, getattr(torch, _DTYPE.value), self.device)
        # Nothing but its recorded length ends a row.
        network.generation_config = transformers.GenerationConfig(pad_token_id=self.pad)
        if _CHECKPOINTING.value:
            network.activation_checkpointing_enable({"use_reentrant": False})
        names = HF_NAMES[network.config.model_type]
        self.model = peft.get_peft_model(network, peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=int(workload["lora_rank"]),
            lora_alpha=float(workload["lora_alpha"]),
            target_modules=[names[t] for t in workload["lora_targets"].tolist() if t in names],
        )).eval()  # fmt: skip
        self.merges = _DTYPE.value == "float32" if _MERGE.value is None else _MERGE.value

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.int64).to(self.device)

    def continued(
        self, ids: np.ndarray, mask: np.ndarray, steps: int, sampling: dict, criteria: list
    ) -> np.ndarray:
        """One left-padded batch through `generate`: what was drawn, `[B, steps]`."""
        tokens = self.model.generate(
            input_ids=self.tensor(ids),
            attention_mask=self.tensor(mask),
            max_new_tokens=steps,
            stopping_criteria=criteria,
            cache_implementation="static" if self.cache == "static" else None,
            **sampling,
        )
        return tokens[:, ids.shape[1] :].cpu().numpy()

    def generate(self, requests: Requests) -> Generated:
        """Continues all requests, a batch at once."""
        result = Generated()
        for begin in range(0, len(requests.lengths), self.batch):
            part = requests.rows(begin, begin + self.batch)
            ids, mask = part.left_padded(self.pad)
            ends = RowLengths(self.tensor(part.wanted), ids.shape[1])
            began = now()
            drawn = self.continued(ids, mask, int(part.wanted.max()), part.sampling, [ends])
            result.prefill += ends.first_token - began
            result.decode += now() - ends.first_token
            inside = np.arange(drawn.shape[1]) < part.wanted[:, None]
            if np.any(drawn[~inside] != self.pad):
                raise ValueError("generate went on with a row that had ended")
            result.prompt_tokens += int(mask.sum())
            result.tokens += int(inside.sum())
            result.row_steps += inside.size
        return result

    def generate_merged(self, requests: Requests) -> Generated:
        """The same with the adapter in the weights, if that is wanted."""
        if not self.merges:
            return self.generate(requests)
        self.model.merge_adapter()
        try:
            return self.generate(requests)
        finally:
            self.model.unmerge_adapter()

    @torch.inference_mode()
    def embed(self, n_rows: int | None = None) -> torch.Tensor:
        """Mean last hidden state `[N, D]` of the questions by the base model, f32."""
        lengths = self.workload["embed_lengths"][:n_rows]
        decoder, vectors = self.model.get_base_model().model, []
        with self.model.disable_adapter():
            for begin in range(0, len(lengths), self.batch):
                part = lengths[begin : begin + self.batch]
                ids = self.workload["embed_ids"][begin : begin + len(part), : part.max()]
                mask = self.tensor(np.arange(part.max()) < part[:, None])
                hidden = decoder(self.tensor(ids), attention_mask=mask, use_cache=False)[0]
                total = (hidden.float() * mask[..., None]).sum(1)
                vectors.append(total / mask.sum(1, keepdim=True))
        return torch.cat(vectors)

    @torch.inference_mode()
    def retrieve(self, vectors: torch.Tensor) -> np.ndarray:
        """The k nearest rows of the pool to each of `vectors [N, D]`, exactly: `[N, k]`."""
        pool = torch.as_tensor(self.workload["pool"]).to(self.device)
        k = min(int(self.workload["k"]), len(pool))
        return torch.topk(vectors @ pool.T, k).indices.cpu().numpy()

    def train_batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Sequences padded to the longest of them; labels on the answer and EOS alone."""
        lengths = self.workload["train_lengths"][rows]
        position = np.arange(lengths.max())
        mask = position < lengths[:, None]
        ids = self.workload["train_ids"][rows, : lengths.max()]
        inside = mask & (position >= self.workload["train_begin"][rows, None])
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": np.where(inside, ids, -100),
        }
        return {name: self.tensor(array) for name, array in arrays.items()}

    def train(self, batches: np.ndarray) -> tuple[np.ndarray, int]:
        """Optimiser steps over `batches [S, B]` (-1: no row): losses `[S]`, and tokens read."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=float(self.workload["learning_rate"]), betas=(0.9, 0.95),
            weight_decay=0.0, fused=True,
        )  # fmt: skip
        self.model.train()
        losses, tokens = [], []
        for rows in batches:
            batch = self.train_batch(rows[rows >= 0])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=_AUTOCAST.value):
                loss = self.model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, float(self.workload["clip_norm"]))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            tokens.append(batch["attention_mask"].sum())
        self.model.eval()
        return torch.stack(losses).cpu().numpy(), int(torch.stack(tokens).sum())

    def greedy(self, requests: Requests) -> list[list[int]]:
        """The base model's most probable continuations of the first prompts."""
        ids, mask = requests.rows(0, GREEDY_ROWS).left_padded(self.pad)
        steps = int(min(GREEDY_TOKENS, requests.wanted.max()))
        with self.model.disable_adapter():
            return self.continued(ids, mask, steps, {"do_sample": False}, []).tolist()

    def warm_up(self, requests: list[Requests]) -> None:
        """A small piece of every stage, without effect on what follows."""
        for stage in requests:
            self.generate_merged(stage.shortened(self.batch))
        self.retrieve(self.embed(n_rows=self.batch))
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trainable]
        self.train(self.workload["batches"][:1])
        with torch.no_grad():
            for parameter, value in zip(trainable, before, strict=True):
                parameter.copy_(value)


def load(folder: str, dtype: torch.dtype, device: torch.device) -> transformers.PreTrainedModel:
    """The network without dropout, from its weights or, where there are none, from noise."""
    config = transformers.AutoConfig.from_pretrained(folder)
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    settings = {"dtype": dtype, "attn_implementation": "sdpa"}
    if any(pathlib.Path(folder).glob("*.safetensors")):
        network = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, **settings
        )
        return network.to(device)
    with device:
        return transformers.AutoModelForCausalLM.from_config(config, **settings)


def now() -> float:
    """Seconds, when everything asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def choose(peer: Peer, requests: Requests) -> dict[str, float]:
    """Sets the peer's cache and batch, by trial on the first requests where several are allowed.

    Returns:
      Tokens a second of what was tried; 0 where memory did not suffice.
    """
    caches = ("dynamic", "static") if _CACHE.value == "fastest" else (_CACHE.value,)
    sizes = [int(size) for size in _SEARCH_BATCH.value] or [_BATCH.value]
    settings = [(cache, size) for cache in caches for size in sizes]
    speeds = {}
    for setting in settings if len(settings) > 1 else ():
        (peer.cache, peer.batch), speeds[setting] = setting, 0.0
        with contextlib.suppress(torch.OutOfMemoryError):
            speeds[setting] = tokens_per_second(peer, requests)
        torch.cuda.empty_cache()  # does nothing where there is no GPU
    peer.cache, peer.batch = max(speeds, key=speeds.get, default=settings[0])
    return {f"{cache} {size}": speed for (cache, size), speed in speeds.items()}


def tokens_per_second(peer: Peer, requests: Requests) -> float:
    """Tokens generated a second in the first batch."""
    peer.generate_merged(requests.shortened(peer.batch))
    began = now()
    done = peer.generate_merged(requests.rows(0, peer.batch))
    return done.tokens / (now() - began)


def peak_bytes() -> int:
    """The device's, or of a CPU the process's, highest use of memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def iteration(peer: Peer, questions: Requests, answers: Requests) -> dict[str, object]:
    """The whole iteration: seconds a stage, the work done, the losses."""
    seconds = {}

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = now()
        yield
        seconds[stage] = now() - began

    with timed("questions"):
        asked = peer.generate_merged(questions)
    with timed("embed"):
        vectors = peer.embed()
    with timed("retrieve"):
        peer.retrieve(vectors)
    with timed("answers"):
        answered = peer.generate_merged(answers)
    with timed("train"):
        losses, train_tokens = peer.train(peer.workload["batches"])
    detail, work = {}, {}
    for stage, done in (("question", asked), ("answer", answered)):
        detail |= {f"{stage}s_prefill": done.prefill, f"{stage}s_decode": done.decode}
        work[f"{stage}_prompt_tokens"] = done.prompt_tokens
        work[f"{stage}_tokens"] = done.tokens
        work[f"{stage}_row_steps"] = done.row_steps
    tenth = max(1, len(losses) // 10)
    return {
        "stages": seconds,
        "stages_detail": detail,
        "work": work | {"train_tokens": train_tokens, "steps": len(losses)},
        "first_loss": float(losses[:tenth].mean()),
        "last_loss": float(losses[-tenth:].mean()),
    }


def main(_: list[str]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(_THREADS.value)
    workload = dict(np.load(_WORKLOAD.value))
    peer = Peer(_MODEL.value, workload)
    questions, answers = Requests.of(workload, "question"), Requests.of(workload, "answer")
    speeds = choose(peer, answers)
    peer.warm_up([questions, answers])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    result = iteration(peer, questions, answers) | {
        "peak_bytes": peak_bytes(),
        "greedy": peer.greedy(answers),
        "batch": peer.batch,
        "cache": peer.cache,
        "tried": speeds,
        "dtype": _DTYPE.value,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
