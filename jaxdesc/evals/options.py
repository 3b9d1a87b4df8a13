"""What the options of all protocols share."""

from dataclasses import dataclass
from pathlib import Path

from jaxdesc.config import option, validate_fields
from jaxdesc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is scored on which data; a protocol's options are a subclass with fields by `option`.

    Raises:
      UserError: naming the field or the flag that is wrong.
    """

    data: str | Path = option("", "the data set as it is distributed", unit="DIR")
    out: str | Path = option("", "folder of the predictions and the results", unit="DIR")
    weights: str | Path = option(
        "",
        "weight file or training workdir (default: pump's, which come with the package)",
        unit="W",
    )
    method: str | None = option(None, "a baseline without weights", choices=())
    label: str = option(
        "",
        "of the method in tables (default: what the predictions were made with)",
        unit="NAME",
    )
    overwrite: bool = option(False, "predict again into files that exist")

    def __post_init__(self):
        validate_fields(self, "Options")
        if self.method and self.weights:
            raise UserError(
                f"--method {self.method} needs no weights: leave --weights out, or --method."
            )

    def folder(self, missing: str = "--data DIR is needed: the folder of the data set.") -> Path:
        """Of the data.

        Args:
          missing: what is said if none is named.
        Raises:
          UserError: none is named, or there is none.
        """
        if not self.data:
            raise UserError(missing)
        if not Path(self.data).is_dir():
            raise UserError(f"There is no folder --data {self.data}.")
        return Path(self.data)
