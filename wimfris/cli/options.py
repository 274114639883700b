"""Options that several verbs share, and functions that read their values."""

from typing import Annotated

import typer

from wimfris.errors import UserError
from wimfris.settings.params import Params, read_params

ScaleOption = Annotated[str | None, typer.Option(help="The scale; by default params.yaml's.")]
VariantOption = Annotated[str, typer.Option(help="The variant; at some scales variants have other encoders.")]
DataOption = Annotated[str | None, typer.Option(help="The data set; by default params.yaml's.")]


def params_at(scale: str | None = None, data: str | None = None) -> Params:
    """Return params.yaml at another scale or data set, where one is given."""
    params = read_params()
    if data is not None:
        params = params.model_copy(update={"data": params.data | {"name": data}})
    return params.at_scale(scale)


def names(text: str) -> list[str]:
    """Split a list of names at its commas."""
    return [name.strip() for name in text.split(",")]


def numbers(option: str, text: str) -> list[int]:
    """Split a list of whole numbers at its commas. Raises UserError where it holds anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"{option} must be whole numbers separated by commas, for example 0,1,2; got {text}") from None
