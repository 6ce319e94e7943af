"""Training items of a guard from a row: both answers and the prompt alone, with labels."""

from __future__ import annotations

from typing import NamedTuple

from rlsys.algorithms.moderation import SEVERITIES
from rlsys.data.rows import PreferencePair
from rlsys.errors import DataError

NO_CATEGORY = "none"
# Of BeaverTails-V (Safe RLHF-V, arXiv 2503.17682), and one for items without harm.
CATEGORIES = (
    NO_CATEGORY,
    "animal_abuse",
    "dangerous_behavior",
    "deception_in_personal_relationships",
    "discriminatory_depictions",
    "environmental_damage",
    "false_information",
    "financial_and_academic_fraud",
    "hacking_or_digital_crime",
    "harmful_health_content",
    "horror_and_gore",
    "identity_misuse_and_impersonation",
    "insulting_and_harassing_behavior",
    "pornographic_content",
    "privacy_invasion_and_surveillance",
    "psychological_harm_and_manipulation",
    "psychological_horror_and_dark_themes",
    "sensitive_information_in_key_areas",
    "sexual_crimes",
    "terrorism_or_extremism",
    "violence_and_physical_harm",
)
OUTPUTS = 1 + SEVERITIES + len(CATEGORIES)


class Label(NamedTuple):
    """unsafe; severity 0..3; category: index into CATEGORIES."""

    unsafe: bool
    severity: int
    category: int


def labelled_answers(record: PreferencePair) -> list[tuple[str, Label]]:
    """Three items: response 1, response 2, and an empty answer for the prompt alone.

    Severity of an answer: minus its harmless rate, at least 1, if labelled unsafe, else 0; of the
    prompt: the row's. The category is always the prompt's.
    Raises: DataError for a category that is not one of CATEGORIES.
    """
    if record.category not in CATEGORIES:
        raise DataError(
            f"row {record.id}: category {record.category!r} is not one of BeaverTails-V's 20 "
            f"or {NO_CATEGORY!r}"
        )
    category = CATEGORIES.index(record.category)
    items = [
        (text, Label(not safe, 0 if safe else max(1, -rate), category))
        for text, safe, rate in zip(
            record.responses, record.safe, record.harmless_rates, strict=True
        )
    ]
    return [*items, ("", Label(record.severity > 0, record.severity, category))]
