"""Text from a model."""

import re

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.hugging_face import HuggingFaceTokenizer
from hybridtron.errors import UserError
from hybridtron.model.generation.generate import LARGEST_BATCH
from hybridtron.model.generation.generate import generate as complete
from hybridtron.model.generation.sampling import Sampling
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from tests.data.kinds import saved, sentencepiece_bpe
from tests.training.runs import resolved_tiny


def model(**keys):
    config = resolved_tiny(**keys).model
    built = LanguageModel(config, TorchBackend())
    initialize(built, config, seed=0)
    return built


def generate(*arguments, **options):
    """Return the texts of completions; settings of `Sampling` are among the options."""
    settings = {key: options.pop(key) for key in Sampling.__dataclass_fields__ if key in options}
    return [each.text for each in complete(*arguments, sampling=Sampling(**settings), **options)]


def text(tokens=12, prompt="ab", **options):
    return generate(model(), ByteTokenizer(), [prompt], tokens, **{"context": 32, **options})[0]


def test_the_seed_decides_the_text():
    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)


def test_temperature_zero_and_top_1_take_the_likeliest():
    assert text(temperature=0, seed=1) == text(temperature=1.0, top_k=1, seed=2)


def test_each_token_is_the_likeliest_after_those_before():
    built, tokenizer = model(), ByteTokenizer()
    for start_document in (True, False):
        ids = [tokenizer.eod, *b"ab"] if start_document else list(b"ab")
        start = len(ids)
        for _ in range(5):
            ids.append(int(built.logits(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].argmax()))
        options = {"context": 32, "temperature": 0, "start_document": start_document}
        assert generate(built, tokenizer, ["ab"], 5, **options) == [tokenizer.decode(ids[start:])]


def test_a_window_of_tokens_says_the_same_as_the_state_after_them():
    """Within the context; beyond it the state begins anew with half of it."""
    built, tokenizer, context = model(), ByteTokenizer(), 32
    for prompt, tokens in (("ab", 20), ("x" * 40, 1)):
        ids = [tokenizer.eod, *prompt.encode()]
        start = len(ids)
        for _ in range(tokens):
            ids.append(int(built.logits(torch.tensor([ids[-context:]]))[0, -1, : tokenizer.vocab_size].argmax()))
        drawn = ids[start:] if tokenizer.eod not in ids[start:] else ids[start : ids.index(tokenizer.eod, start)]
        assert text(tokens, prompt, temperature=0) == tokenizer.decode(drawn)


def test_a_text_longer_than_the_context_sees_the_last_half_at_least():
    built, tokenizer, context = model(), ByteTokenizer(), 8
    ids = [tokenizer.eod, *b"abcd"]
    first = 0
    for _ in range(20):
        if len(ids) - first > context:
            first = len(ids) - context // 2
        ids.append(int(built.logits(torch.tensor([ids[first:]]))[0, -1, : tokenizer.vocab_size].argmax()))
    assert text(20, "abcd", context=context, temperature=0) == tokenizer.decode(ids[5:])


def test_an_empty_prompt_and_one_longer_than_the_context_work():
    assert isinstance(text(prompt=""), str)
    assert isinstance(text(prompt="x" * 100), str)


def test_no_tokens_is_no_text():
    assert text(tokens=0) == ""


def test_prompts_of_a_batch_give_what_each_gives_alone():
    prompts = ["ab", "a longer prompt", "", "xyz"]
    together = generate(model(), ByteTokenizer(), prompts, 12, context=32, seed=3)
    assert together == [text(12, prompt, seed=3) for prompt in prompts]


def test_prompts_longer_than_the_context_do_not_depend_on_the_others():
    built = model(init_std=0.5)  # large weights: what was seen matters
    long = "a prompt that is much longer than the context of sixteen tokens"

    def after(prompts):
        return generate(built, ByteTokenizer(), prompts, 30, context=16, temperature=0)

    assert after([long, "hello", "x" * 16]) == [*after([long]), *after(["hello"]), *after(["x" * 16])]


def test_equal_prompts_give_different_samples():
    first, second = generate(model(), ByteTokenizer(), ["ab", "ab"], 12, context=32, seed=1)
    assert first == text(12, "ab", seed=1)
    assert second != first


def test_more_prompts_than_go_together_and_equal_ones_among_them():
    prompts = [*"abcdefgh" * (LARGEST_BATCH // 8), "a", "zz"]
    together = generate(model(), ByteTokenizer(), prompts, 3, context=32, seed=3)
    assert together[-1] == text(3, "zz", seed=3)
    assert together[0] == text(3, "a", seed=3)
    assert together[LARGEST_BATCH] == text(3, "a", seed=3 + LARGEST_BATCH // 8)


def test_a_text_ends_before_the_first_stop_text_in_it():
    whole = text(12, temperature=0)
    stop = whole[5:8]
    (found,) = complete(
        model(), ByteTokenizer(), ["ab"], 12, context=32, sampling=Sampling(temperature=0), stop=["never", stop]
    )
    assert (found.text, found.ended_by) == (whole[: whole.index(stop)], "stop")
    assert ByteTokenizer().decode(found.tokens) == whole[: whole.index(stop) + len(stop)]


def test_log_probabilities_are_those_of_the_model():
    built, tokenizer = model(), ByteTokenizer()
    (found,) = complete(built, tokenizer, ["ab"], 6, context=32, sampling=Sampling(temperature=1.5, top_k=20))
    ids = torch.tensor([[tokenizer.eod, *b"ab", *found.tokens]])
    expected = built.logits(ids).detach()[0, :, : tokenizer.vocab_size].log_softmax(-1)
    for i, (token, log_prob) in enumerate(zip(found.tokens, found.log_probs, strict=True)):
        assert log_prob == pytest.approx(float(expected[2 + i, token]), abs=1e-5)
    assert found.ended_by == "max_tokens"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 2.5}, "max_tokens = 2.5: expected a whole number"),
        ({"top_k": 1.5}, "top_k = 1.5: expected a whole number"),
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"top_p": 0}, "top_p = 0: expected a number above 0, up to 1"),
        ({"repetition_penalty": -1}, "repetition_penalty = -1: expected a number above 0"),
        ({"stop": [""]}, "stop = '': expected text of at least one character"),
        ({"prompts": [5]}, "prompt = 5: expected text"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        generate(model(), ByteTokenizer(), **{"prompts": ["a"], "max_tokens": 3, "context": 8, **options})


def test_the_space_between_prompt_and_continuation_stays(tmp_path):
    """Tokenizers of the sentencepiece kind leave out the space before the first word that they decode."""
    tokenizer = HuggingFaceTokenizer(saved(sentencepiece_bpe(), tmp_path))
    words = [int(i) for i in tokenizer.encode("the cat sat on the mat")]

    class Recital:
        """A model that gives the next of `words` for certain; its state is how many tokens it has read."""

        def zero_logits(self, batch):
            return torch.zeros(batch, tokenizer.vocab_size)

        def initial_state(self, batch):
            return [torch.zeros(batch, dtype=torch.long)]

        def step(self, ids, state):
            return self.prefill(ids.unsqueeze(1), state)

        def prefill(self, ids, state):
            read = state[0] + ids.shape[1]  # the first is the end-of-document id
            following = torch.tensor([*words, tokenizer.eod])[read - 1]
            return torch.nn.functional.one_hot(following, tokenizer.vocab_size).float() * 100, [read]

    (text,) = generate(Recital(), tokenizer, ["the cat"], 100, context=64, temperature=0)
    assert "the cat" + text == tokenizer.decode(words)
    assert text.startswith(" ")
