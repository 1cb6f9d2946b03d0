"""What a Hugging Face user loads: configs, model classes, the supported backbones, experts and prompt methods.

Here is no data, no training and no folder of a run. Start with `modeling_smope`; the method itself is in
`prefix_experts`.
"""
