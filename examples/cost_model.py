"""What a continual run with SMoPE costs, from the shapes of its backbone and the run alone.

FLOPs count a multiplication and an addition as two and leave elementwise operations out; sizes are in bytes.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """Sizes of a ViT with SMoPE's experts.

    Args:
        width: features D.
        layers: transformer layers L.
        tokens: N, the CLS token among them.
        patch: side of a patch in pixels.
        prompt_layers: the first layers that have experts.
        experts: E per head.
        heads: attention heads.
    """

    width: int
    layers: int
    tokens: int
    patch: int
    prompt_layers: int
    heads: int
    experts: int = 25

    @property
    def mlp(self) -> int:
        return 4 * self.width

    @property
    def prompts(self) -> int:
        """Prompt parameters: keys and values of all experts."""
        return 2 * self.prompt_layers * self.experts * self.width

    @property
    def weights(self) -> int:
        """Weights of the frozen layers' matrices and the patches' projection."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp) + 3 * self.patch**2 * self.width

    def forward(self, classes: int) -> int:
        """FLOPs of an image's forward pass."""
        tokens, width = self.tokens, self.width
        layer = 8 * tokens * width**2 + 4 * tokens * width * self.mlp + 4 * tokens**2 * width
        experts = 4 * width * self.experts  # scores and the weighted mean of the values
        patches = 2 * (tokens - 1) * 3 * self.patch**2 * width
        return self.layers * layer + self.prompt_layers * experts + patches + 2 * width * classes

    def backward(self, classes: int) -> int:
        """FLOPs of an image's backward pass: through activations only, down to the first layer's attention."""
        tokens, width, layers = self.tokens, self.width, self.layers
        behind = layers * (2 * tokens * width**2 + 4 * tokens * width * self.mlp)  # output projection and MLP
        inside = (layers - 1) * (6 * tokens * width**2 + 10 * tokens**2 * width)  # the kernel computes weights again
        experts = self.prompt_layers * (6 * width * self.experts + 4 * tokens * width)
        query = (self.prompt_layers - 1) * 2 * width * self.experts  # the first layer's query has no gradient
        return behind + inside + experts + query + 4 * width * classes

    def activations(self) -> int:
        """Numbers that autograd keeps of an image: the inputs of norms and GELU, and the attention's."""
        first = 2 * self.width + self.mlp  # the first layer's norm and projections come before any gradient
        attention = 4 * self.width
        return self.tokens * (self.layers * (first + attention) - self.width)


@dataclass(frozen=True)
class Run:
    """A continual run: tasks of equally many classes.

    Args:
        tasks: T.
        classes: new classes of a task.
        images: training images of a class.
        tests: test images of a class.
        epochs: passes over a task's images; the first task has `dense_epochs` more.
        batch: images of a step, over all processes.
        processes: that share the work.
    """

    tasks: int
    classes: int
    images: int
    tests: int
    epochs: int = 5
    dense_epochs: int = 2
    batch: int = 64
    processes: int = 1

    def stages(self, shape: Shape) -> dict[str, dict[str, float]]:
        """By stage: FLOPs of all processes together, and bytes that each process sends in a ring."""
        width, new = shape.width, self.classes * self.images  # images of a task
        known = [self.classes * (task + 1) for task in range(self.tasks)]
        middle = sum(known) // self.tasks  # of the head's sizes: all its costs are linear in them
        passes = self.tasks * self.epochs + self.dense_epochs
        forward, backward = shape.forward(middle), shape.backward(middle)
        ring = 2 * (self.processes - 1) / self.processes
        gathered = 4 * (self.processes - 1) / self.processes
        trained = 4 * (shape.prompts + middle * (width + 1))
        seen = new * (2 * self.tasks - 1)  # before and after a task's training; nothing is stored before the first
        evaluated = self.tests * sum(known)
        pairs = self.tasks * new * 6 * width**2 + self.tasks * 7 * width**3  # products, ridge, moved covariance
        return {
            "training": {
                "flops": passes * new * (forward + backward),
                "sent": passes * -(-new // self.batch) * trained * ring,
            },
            "statistics": {
                "flops": seen * forward + pairs,
                "sent": seen * (width + shape.prompt_layers * shape.heads * shape.experts) * gathered,
            },
            "alignment": {"flops": sum(width**3 / 3 + 4 * width**2 * classes for classes in known), "sent": 0.0},
            "evaluation": {"flops": evaluated * forward, "sent": evaluated * 2 * gathered},
        }

    def step_bytes(self, shape: Shape, classes: int) -> dict[str, int]:
        """Bytes that a process holds in a training step, in float32."""
        trained = shape.prompts + classes * (shape.width + 1)
        images = -(-self.batch // self.processes)
        return {
            "frozen weights": 4 * shape.weights,
            "activations": 4 * images * shape.activations(),
            "trained weights, gradients, AdamW": 16 * trained,
        }

    def saved_bytes(self, shape: Shape) -> tuple[int, int]:
        """Bytes of the last task's checkpoint, and of all of them: head and statistics grow with the classes."""
        fixed = 4 * (shape.prompts * 3 // 2 + shape.width**2)  # with the previous keys; the scatter

        def size(task: int) -> int:
            return fixed + 4 * self.classes * task * (3 * shape.width + 3)

        return size(self.tasks), sum(size(task + 1) for task in range(self.tasks))


@dataclass(frozen=True)
class Machine:
    """What a machine is assumed to do in a second.

    Args:
        flops: of a process's device, in the model's precision.
        host_flops: of its processor in float64, for the closed-form head.
        link: bytes that a process sends.
        decoded: images that all processes decode.
    """

    flops: float
    host_flops: float
    link: float
    decoded: float


def predicted(run: Run, shape: Shape, machine: Machine) -> dict[str, float]:
    """Hours of each stage; where a process computes and sends, one after the other."""
    hours = {
        stage: (cost["flops"] / run.processes / machine.flops + cost["sent"] / machine.link) / 3600
        for stage, cost in run.stages(shape).items()
    }
    hours["alignment"] = (
        run.stages(shape)["alignment"]["flops"] / machine.host_flops / 3600
    )  # the same in each process
    hours["decoding"] = run.tasks * run.classes * (run.images + run.tests) / machine.decoded / 3600
    return hours


def overtaken(run: Run, shape: Shape) -> int:
    """The first number of tasks at which evaluation costs more FLOPs than training."""
    for tasks in range(1, 100_000):
        stages = replace(run, tasks=tasks).stages(shape)
        if stages["evaluation"]["flops"] > stages["training"]["flops"]:
            return tasks
    raise ValueError("evaluation stays below training up to 100,000 tasks")
