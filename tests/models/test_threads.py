"""One model asked from several threads, as a web server does: each gets the answers to its own images."""

import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import EXTRA, tiny_images, tiny_model
from model_history import with_history
from PIL import Image
from prompted_models import METHODS, PROMPTED, tiny_prompted
from torch._dynamo.testing import CompileCounter
from transformers import ViTImageProcessorPil, pipeline

THREADS, REQUESTS, ROUNDS = 4, 6, 2
ROUTINGS = ("masked", "unmasked", "random")
CASES = [*ROUTINGS, *METHODS]
DIFFERENT = [*ROUTINGS, *PROMPTED, "linear"]  # methods without prompts differ in their training alone
QUICK = ("masked", "l2p")  # the others are tried with the slow tests where a test is not quick


def a_model(case: str, model_type: str = "vit", seed: int = 0):
    """A model of a method, or SMoPE with a routing."""
    if case in ROUTINGS:
        return with_history(tiny_model(model_type, seed, routing=case, num_experts=25, num_labels=None))
    return tiny_prompted(case, model_type, seed=seed)


@pytest.fixture(params=DIFFERENT)
def model(request):
    return a_model(request.param)


@pytest.fixture(autouse=True)
def threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def requests(count: int = REQUESTS) -> list[torch.Tensor]:
    return [tiny_images(2, seed=10 + number) for number in range(count)]


def at_once(works: list[Callable[[], list]]) -> list[list]:
    """What each of several pieces of work gives, a thread for each; they begin together."""
    start, results = threading.Barrier(len(works)), [None] * len(works)

    def run(index: int, work: Callable[[], list]):
        start.wait()
        try:
            results[index] = work()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def same(ours, theirs) -> bool:
    if isinstance(theirs, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(theirs, (tuple, list)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def check_at_once(asks: list[Callable], requests: list):
    """Check that each thread, with its own way to ask, gets to each request what one gets alone, later."""
    count = len(requests)

    def work(index: int) -> list:
        first = index * count // len(asks)  # each begins with another request
        given = {}
        for turn in range(ROUNDS * count):
            given.setdefault((first + turn) % count, []).append(asks[index](requests[(first + turn) % count]))
        return [given[number] for number in range(count)]

    found = at_once([lambda index=index: work(index) for index in range(len(asks))])
    expected = [[ask(request) for request in requests] for ask in asks]
    wrong = sum(
        not same(answer, right)
        for ours, theirs in zip(found, expected, strict=True)
        for answers, right in zip(ours, theirs, strict=True)
        for answer in answers
    )
    assert wrong == 0, (
        f"{wrong} of {ROUNDS * len(asks) * count} answers are not those to the images that were asked about"
    )


def asking(model, **kwargs) -> Callable:
    """A function from images to what the model answers about them."""

    @torch.no_grad()
    def ask(images):
        return model(images, **kwargs).to_tuple()

    return ask


@pytest.mark.parametrize("case", CASES)
def test_every_answer_is_about_its_own_images(case):
    check_at_once([asking(a_model(case))] * THREADS, requests())


@pytest.mark.parametrize("model_type", EXTRA)
@pytest.mark.parametrize("case", QUICK)
def test_with_every_family(case, model_type):
    check_at_once([asking(a_model(case, model_type))] * 3, requests(4))


def test_one_thread_wants_the_attention_weights_and_another_none(model):
    weights = asking(model, output_attentions=True)
    check_at_once([weights, asking(model), weights, asking(model)], requests())


def test_one_thread_wants_the_scores():
    model = a_model("masked")
    check_at_once([asking(model, output_router_scores=True), asking(model)] * 2, requests())


def test_one_thread_wants_the_backbones_own_features(model):
    check_at_once([model.backbone_features, asking(model)] * 2, requests())


def test_two_models_on_two_threads(model):
    other = a_model("masked", seed=1) if hasattr(model, "prompts") else a_model("l2p", seed=1)
    check_at_once([asking(model), asking(other)] * 2, requests())


def test_one_shared_pipeline(model):
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    classify = pipeline("image-classification", model=model, image_processor=processor, top_k=None)
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(REQUESTS)]
    check_at_once([classify] * THREADS, images)


@pytest.fixture
def no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
@pytest.mark.parametrize("part", ["model", "backbone"])
def test_compiled(case, part, no_graphs_of_other_tests):
    check_compiled(a_model(case), part, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK)
@pytest.mark.parametrize("part", ["model", "backbone"])
def test_compiled_to_machine_code(case, part, no_graphs_of_other_tests):
    check_compiled(a_model(case), part, "inductor")


def test_threads_share_what_was_compiled(no_graphs_of_other_tests):
    model, counter = a_model("masked"), CompileCounter()
    model.compile(backend=counter, fullgraph=True)
    asking(model)(tiny_images(2))
    check_at_once([asking(model)] * THREADS, requests())
    assert counter.frame_count == 1


def check_compiled(model, part: str, backend: str):
    (model if part == "model" else model.backbone).compile(backend=backend, fullgraph=True)
    asking(model)(tiny_images(2))
    check_at_once([asking(model)] * THREADS, requests())


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK)
def test_the_first_to_ask_a_compiled_model_are_several_threads(case, no_graphs_of_other_tests):
    model, images = a_model(case), requests(2)
    model.compile(backend="eager", fullgraph=True)
    check_at_once([asking(model)] * THREADS, images)


@pytest.mark.parametrize("mode", ["raw_routing", "dense_routing"])
def test_a_routing_mode_is_that_of_the_thread_that_entered_it(mode):
    model = a_model("masked")

    @torch.no_grad()
    def ask_in_mode(images):
        with getattr(model, mode)():
            return model(images).to_tuple()

    images = requests()
    assert not any(same(ask_in_mode(each), asking(model)(each)) for each in images)
    check_at_once([ask_in_mode, asking(model)] * 2, images)


@pytest.mark.parametrize("case", ["masked", *PROMPTED])
def test_the_layers_that_a_backward_pass_runs_again_know_their_own_pass(case):
    """Another thread runs the backward pass, behind another forward pass: so do the threads of a GPU."""
    model = a_model(case).train()
    parameters = [value for value in model.parameters() if value.requires_grad]
    images, labels = tiny_images(4), torch.tensor(model.config.tasks[-1][:1] * 4)
    torch.manual_seed(0)
    expected = torch.autograd.grad(model(images, labels=labels).loss, parameters, allow_unused=True)
    model.activation_checkpointing_enable()
    torch.manual_seed(0)
    loss = model(images, labels=labels).loss
    model(tiny_images(3, seed=5))
    (found,) = at_once([lambda: torch.autograd.grad(loss, parameters, allow_unused=True)])
    assert same(found, expected)
