"""Registration with transformers' Auto classes, without waiting for transformers or for the models.

Loading the Auto classes of transformers takes seconds, and loading a model class as long again. So registering loads
nothing: whichever of the modules below is loaded, by whom and in which order ever, the classes that are there by then
are entered. For one that is not there yet a stand-in is, which loads it on first use.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder

AUTO_CONFIG = ("transformers.models.auto.configuration_auto", "AutoConfig")
AUTO_MODEL = ("transformers.models.auto.modeling_auto", "AutoModelForImageClassification")
CLASSES = {  # model type -> module and name of its config, and of its model
    "smope": (
        ("smope_hf.models.configuration_smope", "SMoPEConfig"),
        ("smope_hf.models.modeling_smope", "SMoPEForImageClassification"),
    ),
    "smope_prompted": (
        ("smope_hf.models.configuration_prompted", "PromptedConfig"),
        ("smope_hf.models.modeling_prompted", "PromptedForImageClassification"),
    ),
}


class _StandIn(type):
    """The class of a class that is loaded when something other than its name is asked for."""

    def load(cls) -> type:
        return getattr(importlib.import_module(cls.place[0]), cls.place[1])

    def __getattr__(cls, name: str):
        return getattr(cls.load(), name)

    def __call__(cls, *args, **kwargs):
        return cls.load()(*args, **kwargs)

    def __instancecheck__(cls, instance) -> bool:
        return isinstance(instance, cls.load())

    def __subclasscheck__(cls, subclass) -> bool:
        return issubclass(subclass, cls.load())


def register():
    """Enter configs and models into those of the Auto classes that are loaded; what is entered stays."""
    auto_config, auto_model = _loaded(*AUTO_CONFIG), _loaded(*AUTO_MODEL)
    for model_type, (config_place, model_place) in CLASSES.items():
        config, model = _loaded(*config_place), _loaded(*model_place)
        if auto_config is not None:
            auto_config.register(model_type, config or _stand_in(config_place), exist_ok=True)
        if auto_model is not None and config is not None:  # nobody looks for the model of a config that is not there
            auto_model.register(config, model or _stand_in(model_place, config_class=config), exist_ok=True)


def _loaded(module: str, name: str):
    return getattr(sys.modules.get(module), name, None)


def _stand_in(place: tuple[str, str], **attributes) -> _StandIn:
    return _StandIn(place[1], (), {"place": place, **attributes})


class _Watcher(MetaPathFinder):
    """Calls `register` each time one of the modules concerned has been loaded; finds nothing itself."""

    def __init__(self):
        ours = (module for places in CLASSES.values() for module, _ in places)
        self.modules = {AUTO_CONFIG[0], AUTO_MODEL[0], *ours}

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                register()

            spec.loader.exec_module = execute_and_register
        return spec


def register_when_loaded():
    """Enter what can be entered now, and the rest as the modules are loaded."""
    sys.meta_path.insert(0, _Watcher())
    register()
