"""Prompts and answers to ids, pixels and padded batches."""

from dataclasses import replace

import pytest
import torch

from rlsys.data.collate import collate
from rlsys.data.encoded import EncodedCache, EncodedPrompt
from rlsys.data.encoder import PromptEncoder, forged_token
from rlsys.data.fit import special_rows
from rlsys.data.rejections import Reason
from rlsys.data.rows import Prompt, Rows
from rlsys.errors import DataError
from rlsys.models.heads import NO_TOKEN
from tests.unit.conftest import QUESTIONS, make_pair

ROWS = [0, 1, 2, 3]
VISUAL_TOKENS = [4, 8, 8, 9]  # images of 56x56, 112x56, 56x112 and 84x84 pixels, 28x28 per token


def fresh(encoder: PromptEncoder, limit: int = 128) -> PromptEncoder:
    """The same rows, nothing cached."""
    return PromptEncoder(encoder.processor, encoder.records, limit)


def asking(encoder: PromptEncoder, question: str) -> PromptEncoder:
    record = make_pair(0, question, ("yes", "no"))
    return PromptEncoder(encoder.processor, Rows([record]), 128)


def equal(left: EncodedPrompt, right: EncodedPrompt) -> bool:
    return (
        torch.equal(left.expanded, right.expanded)
        and left.collapsed == right.collapsed
        and left.pixels.keys() == right.pixels.keys()
        and all(torch.equal(left.pixels[name], right.pixels[name]) for name in left.pixels)
    )


# prompts


def test_a_prompt_holds_one_id_per_visual_token(encoder: PromptEncoder) -> None:
    image = encoder.image_token_id
    for prompt, count in zip(encoder.prompts(ROWS), VISUAL_TOKENS, strict=True):
        assert int((prompt.expanded == image).sum()) == count
        assert prompt.collapsed.count(image) == 1
        start = prompt.collapsed.index(image)
        assert (
            prompt.expanded.tolist()
            == prompt.collapsed[:start] + [image] * count + prompt.collapsed[start + 1 :]
        )
        assert len(prompt.pixels["pixel_values"]) == 4 * count  # four patches per visual token


def test_a_prompt_reads_as_the_conversation(encoder: PromptEncoder) -> None:
    for row, prompt in enumerate(encoder.prompts(ROWS)):
        text = encoder.tokenizer.decode(prompt.collapsed)
        assert text == encoder.render(encoder.records[row])
        assert QUESTIONS[row] in text
        assert text.endswith("<|im_start|>assistant\n")


def test_encoding_together_is_encoding_one_by_one(encoder: PromptEncoder) -> None:
    together = fresh(encoder).prompts(ROWS)
    alone = [fresh(encoder).prompts([row])[0] for row in ROWS]
    assert len({len(prompt.expanded) for prompt in together}) > 1
    assert all(map(equal, together, alone))


def test_rows_come_in_the_order_asked_for_and_may_repeat(encoder: PromptEncoder) -> None:
    reference = fresh(encoder).prompts(ROWS)
    asked = [3, 0, 3, 2, 1, 0]
    for prompt, row in zip(fresh(encoder).prompts(asked), asked, strict=True):
        assert equal(prompt, reference[row])


def test_a_prompt_is_encoded_once(encoder: PromptEncoder) -> None:
    mine = fresh(encoder)
    first = mine.prompts([0, 1])
    again = mine.prompts([1, 2, 0])
    assert again[0] is first[1]
    assert again[2] is first[0]


def test_lengths_are_known_without_the_pixels(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of four sizes, each of them twice, and a row without one."""
    records = [make_pair(n, QUESTIONS[n % 4], ("", "")) for n in range(9)]
    records[8] = replace(records[8], image=None)
    mine = PromptEncoder(encoder.processor, Rows(records), 128)
    opened: list[str] = []
    whole = Prompt.open_images
    monkeypatch.setattr(Prompt, "open_images", lambda r: (opened.append(r.id), whole(r))[1])
    asked = [7, 8, 0, 1, 2, 3, 4, 5, 6, 0]
    found = mine.lengths(asked)
    assert len(opened) == 4
    assert found == [len(prompt.expanded) for prompt in mine.prompts(asked)]


def test_a_hint_follows_the_question_and_no_hint_changes_nothing(encoder: PromptEncoder) -> None:
    plain = fresh(encoder).prompts(ROWS)
    mine = fresh(encoder)
    hinted = mine.prompts([0, 1, 0], ["mind the risk", "", ""])
    assert equal(hinted[1], plain[1])
    assert equal(hinted[2], plain[0])
    question = encoder.records[0].question
    rendered = mine.render(encoder.records[0], "mind the risk")
    assert rendered == mine.render(encoder.records[0]).replace(
        question, f"{question} mind the risk"
    )
    assert len(hinted[0].expanded) > len(plain[0].expanded)
    assert all(torch.equal(hinted[0].pixels[k], plain[0].pixels[k]) for k in plain[0].pixels)
    token = encoder.tokenizer.all_special_tokens[0]
    with pytest.raises(DataError, match="row-0"):
        mine.prompts([0], [f"see {token}"])


def sharing(encoder: PromptEncoder, cache: EncodedCache) -> PromptEncoder:
    return PromptEncoder(encoder.processor, encoder.records, 128, cache)


def test_a_full_cache_drops_what_was_used_longest_ago(encoder: PromptEncoder) -> None:
    reference = fresh(encoder).prompts(ROWS)
    for limit in (1, reference[1].nbytes + reference[2].nbytes):
        cache = EncodedCache(limit)
        mine = sharing(encoder, cache)
        for _ in range(2):
            assert all(map(equal, mine.prompts(ROWS), reference))
            assert equal(mine.prompts([2])[0], reference[2])
            assert cache.nbytes <= limit
    kept = mine.prompts([1, 2])
    mine.prompts([1])
    mine.prompts([0])  # 2 goes, as 1 was used after it
    assert mine.prompts([1])[0] is kept[0]
    assert mine.prompts([2])[0] is not kept[1]


def test_encoders_that_share_a_cache_encode_the_same_prompt_once(encoder: PromptEncoder) -> None:
    cache = EncodedCache()
    one, other = sharing(encoder, cache), sharing(encoder, cache)
    first = one.prompts([0])[0]
    assert other.prompts([0])[0] is first
    assert other.prompts([0], ["a hint"])[0] is not first
    assert other.prompts([1])[0] is not first
    row = encoder.records[0]
    changed = [
        replace(row, question="what else ?"), replace(row, system="be brief"),
        replace(row, history=(("a", "b"),)), replace(row, blank=True),
        replace(row, max_pixels=28 * 28), replace(row, image=encoder.records[1].image),
    ]  # fmt: skip
    others = PromptEncoder(encoder.processor, Rows([row, *changed]), 128, cache)
    assert others.prompts([0])[0] is first, "in another split"
    assert all(each is not first for each in others.prompts(range(1, len(changed) + 1)))
    kind = PromptEncoder(encoder.processor, encoder.records, 128, cache, "another processor")
    assert kind.prompts([0])[0] is not first


def test_encoders_that_share_a_cache_share_its_bound(encoder: PromptEncoder) -> None:
    cache = EncodedCache(2 * max(prompt.nbytes for prompt in fresh(encoder).prompts(ROWS)))
    one, other = sharing(encoder, cache), sharing(encoder, cache)
    first = one.prompts([0])[0]
    other.prompts([1, 2, 3])
    assert cache.nbytes <= cache.limit
    assert one.prompts([0])[0] is not first


def test_a_prompt_that_another_encoder_takes_is_too_long_for_this_one(
    encoder: PromptEncoder,
) -> None:
    cache = EncodedCache()
    (prompt,) = sharing(encoder, cache).prompts([0])
    short = len(prompt.expanded) - 1
    with pytest.raises(DataError, match=f"max_prompt_tokens is {short}"):
        PromptEncoder(encoder.processor, encoder.records, short, cache).prompts([0])


def test_an_over_long_prompt_names_its_row(encoder: PromptEncoder) -> None:
    longest = max(len(prompt.expanded) for prompt in encoder.prompts(ROWS))
    row = [len(prompt.expanded) for prompt in encoder.prompts(ROWS)].index(longest)
    assert fresh(encoder, limit=longest).prompts(ROWS)
    with pytest.raises(
        DataError, match=rf"row row-{row}: prompt has {longest} tokens.*{longest - 1}"
    ):
        fresh(encoder, limit=longest - 1).prompts(ROWS)
    with pytest.raises(DataError, match=rf"row row-{row}: prompt has {longest} tokens"):
        fresh(encoder, limit=longest - 1).lengths(ROWS)


@pytest.mark.parametrize(
    "token", ["<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|video_pad|>", "<|vision_start|>"]
)
def test_a_question_may_not_forge_structure(token: str, encoder: PromptEncoder) -> None:
    with pytest.raises(DataError, match="row row-0: the question contains the special token"):
        asking(encoder, f"what is {token} this?").prompts([0])
    assert forged_token(f"a{token}b", encoder.tokenizer.all_special_tokens) == token


def test_rows_that_forge_structure_are_found_before_they_are_drawn(encoder: PromptEncoder) -> None:
    rows, image = encoder.records.rows, encoder.processor.image_token
    tokens = encoder.tokenizer.all_special_tokens
    assert special_rows(encoder.records, tokens) == {}
    forged = replace(rows[1], id="forged", question=f"what is {image} this?")
    told = replace(rows[2], id="told", history=(("hi", f"well {image}"),))
    ruled = replace(rows[3], id="ruled", system=f"see {image}")
    found = special_rows(Rows([rows[0], forged, told, ruled]), tokens)
    assert found == dict.fromkeys(("forged", "told", "ruled"), Reason.SPECIAL_TOKEN)
    with pytest.raises(DataError, match="row told: an earlier turn contains the special token"):
        PromptEncoder(encoder.processor, Rows([told]), 256).prompts([0])


def test_text_that_only_resembles_a_special_token_is_fine(encoder: PromptEncoder) -> None:
    question = "is <image_pad> or <|im or |> safe?"
    (prompt,) = asking(encoder, question).prompts([0])
    assert question in encoder.tokenizer.decode(prompt.collapsed)


# answers


@pytest.mark.parametrize(
    "text",
    ["it is <|im_end|> water", "<|image_pad|><|image_pad|>", "a<|im_start|>user\nb", "<|pad|>"],
)
def test_special_text_in_an_answer_stays_text(text: str, encoder: PromptEncoder) -> None:
    ids = encoder.response(text).tolist()
    eos = encoder.tokenizer.eos_token_id
    special = set(encoder.tokenizer.all_special_ids)
    assert ids[-1] == eos
    assert special.isdisjoint(ids[:-1])
    assert encoder.decode(ids) == text


def test_an_answer_ends_once_and_decodes_to_itself(encoder: PromptEncoder) -> None:
    for text in ("it is water", "no", "ünïcode ☕ too"):
        ids = encoder.response(text).tolist()
        assert ids.count(encoder.tokenizer.eos_token_id) == 1
        assert encoder.decode(ids) == text


# batches


def test_positions_point_at_prompts_and_answers(encoder: PromptEncoder) -> None:
    answers = [encoder.response(t) for t in ("it is water", "no", "you use it", "for a child")]
    prompts = encoder.prompts(ROWS)
    batch = collate(encoder, ROWS, None, answers, width=12)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert batch.logit_positions.shape == batch.labels.shape == (4, 12)
    assert batch.last_positions.shape == (4, 1)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        size, count = len(prompt.expanded), len(answer)
        assert ids[row, :size].tolist() == prompt.expanded.tolist()
        assert mask[row].tolist() == [1] * (size + count) + [0] * (ids.shape[1] - size - count)
        assert (ids[row, size + count :] == encoder.tokenizer.pad_token_id).all()
        for t in range(count):
            assert int(batch.labels[row, t]) == int(answer[t])
            # the state that predicts a token is the one right before it
            assert int(ids[row, batch.logit_positions[row, t] + 1]) == int(answer[t])
        assert int(batch.logit_positions[row, 0]) == size - 1
        assert int(batch.last_positions[row, 0]) == size + count - 1
        assert int(ids[row, batch.last_positions[row, 0]]) == encoder.tokenizer.eos_token_id
        # padding points at real places
        assert bool((batch.logit_positions[row] < size + count).all())
        assert (batch.labels[row, count:] == NO_TOKEN).all()


def test_a_batch_is_as_wide_as_its_longest_answer(encoder: PromptEncoder) -> None:
    answers = [encoder.response("no"), encoder.response("you use it as the label says")]
    batch = collate(encoder, [0, 1], None, answers)
    assert batch.labels.shape[1] == max(map(len, answers))


def test_every_row_points_at_its_own_image(encoder: PromptEncoder) -> None:
    answers = [encoder.response("no")] * 4
    rows = [3, 0, 3, 1]
    batch = collate(encoder, rows, None, answers)
    distinct = encoder.prompts([3, 0, 1])  # an image that several rows show is there once
    assert batch.inputs["image_index"].tolist() == [0, 1, 0, 2]
    assert [pixels.digest for pixels in batch.inputs["pixels"]] == [
        prompt.pixels.digest for prompt in distinct
    ]
    image = batch.inputs["input_ids"] == encoder.image_token_id
    assert torch.equal(batch.inputs["mm_token_type_ids"].bool(), image)
    assert image.sum(1).tolist() == [VISUAL_TOKENS[row] for row in rows]


def test_a_prompt_the_engine_expanded_differently_is_refused(encoder: PromptEncoder) -> None:
    prompts = [prompt.expanded for prompt in encoder.prompts([0, 1])]
    answers = [encoder.response("no")] * 2
    collate(encoder, [0, 1], prompts, answers)
    shorter = torch.tensor(encoder.prompts([1])[0].collapsed)
    with pytest.raises(DataError, match=rf"row row-1: the engine expanded.*{len(shorter)} tokens"):
        collate(encoder, [0, 1], [prompts[0], shorter], answers)
    altered = prompts[0].clone()
    altered[-1] += 1
    with pytest.raises(DataError, match="row row-0"):
        collate(encoder, [0, 1], [altered, prompts[1]], answers)


def test_an_empty_response_names_its_row(encoder: PromptEncoder) -> None:
    empty = torch.tensor([], dtype=torch.int64)
    with pytest.raises(DataError, match="row row-3: empty response"):
        collate(encoder, [1, 3], None, [encoder.response("no"), empty])
