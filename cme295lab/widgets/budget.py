"""A memory budget: a training setting on a GPU, as a value that can be written into a link and read back.

The ledger does the counting (`cme295lab.memory`). Here a setting and a GPU are put together, and turned into text:
JSON, which names a preset where the model is one, and a URL fragment, that JSON in the letters that a link may hold.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cme295lab.hardware import Device, get_device
from cme295lab.memory import MemoryLedger, TrainingSetting
from cme295lab.memory.formulas.ledger import Verdict, ledger_of
from cme295lab.memory.formulas.precision import POLICIES
from cme295lab.transformer import PRESETS

_PREFIX = "#budget="


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A training step and the GPU that it must fit.

    Attributes:
        setting: the step.
        device: the GPU.
    """

    setting: TrainingSetting
    device: Device

    @cached_property
    def ledger(self) -> MemoryLedger:
        """What a rank holds at the step's peak."""
        return ledger_of(self.setting)

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        return self.ledger.fits(self.device)

    def to_json(self) -> str:
        """Everything that is needed to make this budget again."""
        values = self.setting.to_dict()
        if PRESETS.get(self.setting.config.name) == self.setting.config:
            values["config"] = self.setting.config.name
        if POLICIES.get(self.setting.policy.name) == self.setting.policy:
            values["policy"] = self.setting.policy.name
        return json.dumps({"device": self.device.name, "setting": values})

    @property
    def fragment(self) -> str:
        """The end of a link that carries this budget, from the # on."""
        return _PREFIX + base64.urlsafe_b64encode(self.to_json().encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> "Budget":
        """The budget that a link, its fragment, or JSON carries.

        Raises:
            ValueError: if the text carries none; the message says what is wrong with it.
        """
        values = _decode(text.strip())
        if not isinstance(values, dict) or set(values) != {"device", "setting"}:
            raise ValueError('text: a budget is {"device": name, "setting": {...}}, as `to_json` writes it')
        try:
            return cls(setting=TrainingSetting.from_dict(values["setting"]), device=get_device(values["device"]))
        except TypeError as error:
            raise ValueError(f"text: not a budget: {error}") from error


def _decode(text: str) -> Any:
    if _PREFIX in text:
        letters = text.partition(_PREFIX)[2]
        try:
            text = base64.urlsafe_b64decode(letters + "=" * (-len(letters) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError(f"text: the link is damaged or incomplete after {_PREFIX}: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"text: neither JSON nor a link with {_PREFIX}…: {error}") from error
