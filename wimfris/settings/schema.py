"""The settings of one run, and the rules that hold between its sections."""

from pathlib import Path

from pydantic import Field, model_validator

from wimfris.settings.backbones import TEXT, VISION
from wimfris.settings.messages import require
from wimfris.settings.placement import placed
from wimfris.settings.sections import Data, Encoders, Evaluate, Hmf, Loss, Model, Section, StepSchedule, Train

MEMORY = 2**43  # bytes: no machine has more


class Settings(Section):
    """All settings of one run, as its manifest records them."""

    scale: str
    variant: str
    group: str = Field(exclude=True)  # folder of the outs: core, extended, extra or a search's
    own_encoders: bool = Field(default=False, exclude=True)  # the variant overrides the encoders of its scale
    data: Data
    encoders: Encoders
    model: Model
    loss: Loss
    train: Train
    evaluate: Evaluate

    @property
    def grid(self) -> int:
        """Return the number of patches along a side of the letterboxed image."""
        return self.data.image_size // self.encoders.vision.patch

    @property
    def scan_window(self) -> int | None:
        """Return the side of the scan's windows in patches; None without windows, or where there are several."""
        window = self.model.hmf.window
        return window if self.model.neck == "hmf" and isinstance(window, int) else None

    @property
    def align_window(self) -> int:
        """Return the side of the alignment loss's windows in patches. It is 4 if the scan has none, or several."""
        return (self.scan_window or 4) if self.loss.align_window == "scan" else self.loss.align_window

    @property
    def text_layers(self) -> tuple[int, ...]:
        """Return the text layers with an adapter."""
        return placed(self.model.mta.layers, self.model.placement, self.encoders.text.layers)

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """Return the vision layers with an adapter."""
        return placed(self.model.msa.layers, self.model.placement, self.encoders.vision.layers)

    @property
    def folder(self) -> Path:
        """Return the folder of this data set and scale."""
        return run_folder(self.data.name, self.scale)

    @property
    def encoders_record(self) -> Path:
        """Return the file that identifies the frozen encoders: that of the scale, or the variant's own."""
        return self.folder / (Path("encoders", f"{self.variant}.json") if self.own_encoders else "encoders.json")

    @property
    def record_command(self) -> str:
        """Return the command that writes `encoders_record`."""
        return f"wimfris encoders record --variant {self.variant}" if self.own_encoders else "dvc repro -f encoders"

    @property
    def outs(self) -> Path:
        """Return the folder of this variant's outs. Each group has its own, so that no core stage depends on others."""
        return self.folder / self.group

    @model_validator(mode="after")
    def _check_data(self) -> "Settings":
        data, patch = self.data, self.encoders.vision.patch
        allowed = f"a multiple of {patch} (encoders.vision.patch)"
        require(data.image_size % patch == 0, "data.image_size", allowed, data.image_size)
        return self

    @model_validator(mode="after")
    def _check_windows(self) -> "Settings":
        allowed = f"at most the grid size ({self.grid})"
        sides = [window for window in self.model.hmf.windows if isinstance(window, int)]
        largest = max(sides, default=1) if self.model.neck == "hmf" else 1
        require(largest <= self.grid, "model.hmf.window", allowed, largest)
        require(self.align_window <= self.grid, "loss.align_window", allowed, self.align_window)
        return self

    @model_validator(mode="after")
    def _check_widths(self) -> "Settings":
        text, vision, model = self.encoders.text, self.encoders.vision, self.model
        multiples = [
            ("encoders.text.width", text.width, text.heads, "encoders.text.heads"),
            ("encoders.text.width", text.width, 2, "sinusoidal positions"),
            ("encoders.vision.width", vision.width, vision.heads, "encoders.vision.heads"),
            ("model.msa.width", model.msa.width, model.msa.heads, "model.msa.heads"),
            ("model.hmf.width", model.hmf.width, model.hmf.heads, "model.hmf.heads"),
            ("model.hmf.width", model.hmf.width, model.decoder.heads, "model.decoder.heads"),
            ("model.hmf.width", model.hmf.width, 4, "two-dimensional sinusoidal positions"),
            ("model.hmf.width", model.hmf.width, len(model.hmf.windows), "groups of channels in model.hmf.window"),
        ]
        if model.neck == "hmf" and model.hmf.mixing in ("attention", "ssd"):
            inner = model.hmf.width // len(model.hmf.windows) * (model.hmf.expand if model.hmf.mixing == "ssd" else 1)
            reason = f"model.hmf.heads, with mixing {model.hmf.mixing}"
            multiples.append(("model.hmf.width", inner, model.hmf.heads, reason))
        if model.rivals is not None:
            key = f"rivals.{self.scale}"
            for name in ("detris", "etris", "pwam"):
                sizes = getattr(model.rivals, name)
                if sizes is not None:
                    field = "attention_width" if name == "detris" else "width"
                    multiples.append(
                        (f"{key}.{name}.{field}", getattr(sizes, field), sizes.heads, f"{key}.{name}.heads")
                    )
        for key, width, divisor, reason in multiples:
            require(width % divisor == 0, key, f"a multiple of {divisor} ({reason})", width)
        return self

    @model_validator(mode="after")
    def _check_layers_and_kernels(self) -> "Settings":
        text, vision, model = self.encoders.text, self.encoders.vision, self.model
        for key, layers, depth in (
            ("model.mta.layers", model.mta.layers, text.layers),
            ("model.msa.layers", model.msa.layers, vision.layers),
            ("encoders.vision.taps", vision.taps, vision.layers),
        ):
            require(all(layer < depth for layer in layers), key, f"layers from 0 to {depth - 1}", list(layers))
            require(list(layers) == sorted(set(layers)), key, "in increasing order, each layer once", list(layers))
        kernels = list(model.msa.kernels)
        require(bool(kernels) or model.msa.mixer == "none", "model.msa.kernels", "at least one number", kernels)
        require(all(size % 2 == 1 for size in kernels), "model.msa.kernels", "odd numbers", kernels)
        reach = 2 * self.grid - 1  # the outer weights of a larger kernel never meet a pixel
        allowed = f"at most {reach}, which covers the grid of {self.grid} from every cell"
        require(all(size <= reach for size in kernels), "model.msa.kernels", allowed, kernels)
        return self

    @model_validator(mode="after")
    def _check_scan(self) -> "Settings":
        """Refuse what causal_conv1d, which the backend `mamba_ssm` calls, has no kernel for."""
        if self.model.scan == "mamba_ssm":
            for key, block in (("model.mta", self.model.mta), ("model.hmf", self.model.hmf)):
                inner = block.expand * block.width
                if isinstance(block, Hmf):
                    inner //= len(block.windows)
                    inner += 2 * block.state if block.mixing == "ssd" else 0  # its convolution takes B and C too
                require(2 <= block.conv <= 4, f"{key}.conv", "from 2 to 4 with model.scan mamba_ssm", block.conv)
                allowed = "such that width * expand is a multiple of 8 with model.scan mamba_ssm"
                require(inner % 8 == 0, f"{key}.width", allowed, block.width)
        return self

    @model_validator(mode="after")
    def _check_memory(self) -> "Settings":
        """Refuse sizes that no machine holds: the weights of the vision encoder, and its activations of one batch."""
        vision, batch = self.encoders.vision, max(self.train.batch_size, self.evaluate.batch_size)
        tokens = self.grid**2 + 1 + vision.registers
        needs = {
            "encoders.vision.width": 48 * vision.layers * vision.width**2,
            "train.batch_size": 4 * batch * tokens * vision.width,
            "data.image_size": 4 * vision.heads * tokens**2,
        }
        for key, need in needs.items():
            allowed = f"smaller: with the other sizes it needs {need / 2**40:,.0f} TiB of memory"
            value = {"data": self.data.image_size, "train": batch, "encoders": vision.width}[key.split(".")[0]]
            require(need <= MEMORY, key, allowed, value)
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> "Settings":
        weights = [self.loss.contrast, self.loss.dice, self.loss.align]
        require(any(weights), "loss", "a section with a weight above 0 (contrast, dice or align)", weights)
        return self

    @model_validator(mode="after")
    def _check_training(self) -> "Settings":
        train = self.train
        possible = train.precision != "fp16" or train.device == "cuda"
        require(possible, "train.precision", "fp32 or bf16 on a CPU", train.precision)
        if isinstance(train.schedule, StepSchedule):
            late = [milestone for milestone in train.schedule.milestones if milestone >= train.epochs]
            require(not late, "train.schedule.milestones", f"less than train.epochs ({train.epochs})", late)
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> "Settings":
        text, vision = self.encoders.text, self.encoders.vision
        for key, backbone in (("encoders.text", text), ("encoders.vision", vision)):
            allowed = "a commit if source is a hub id, null otherwise"
            require(backbone.is_hub == (backbone.revision is not None), f"{key}.revision", allowed, backbone.revision)
        return self

    @model_validator(mode="after")
    def _check_families(self) -> "Settings":
        text, vision = self.encoders.text, self.encoders.vision
        for key, backbone, families in (("encoders.text", text, TEXT), ("encoders.vision", vision, VISION)):
            built_in = backbone.family == next(iter(families))  # of the first family, as scales tiny and small have it
            possible = families[backbone.family].files if backbone.is_file else backbone.is_public or built_in
            allowed = f"a hub id or random with family {backbone.family}"
            require(possible or backbone.source == "random", f"{key}.source", allowed, backbone.source)
        family = VISION[vision.family]
        allowed = f"0, because family {vision.family} has no register tokens"
        require(family.registers or not vision.registers, "encoders.vision.registers", allowed, vision.registers)
        allowed = f"transformers with family {vision.family}, which has no learned position of a class token"
        detris = vision.positions == "detris"
        require(family.detris_positions or not detris, "encoders.vision.positions", allowed, vision.positions)
        if family.positions == "rotary":
            allowed = f"a multiple of {4 * vision.heads} (rotary positions turn pairs of rows and columns in each head)"
            require(vision.width % (4 * vision.heads) == 0, "encoders.vision.width", allowed, vision.width)
        return self


def run_folder(data_name: str, scale: str) -> Path:
    """Return the folder of one data set at one scale, runs/<data set>-<scale>."""
    return Path("runs") / f"{data_name}-{scale}"
