# SAMPLES AND FEATURES
# needs:  results/runs/{run}/snapshots/{images}.safetensors, called {run}@{images}, or results/teachers/{teacher}.safetensors,
#         or results/selections/{run}@best-....safetensors, chosen in measure.smk
# makes:  results/samples/{model}/{sampler}/{seeds}.npz and results/features/...npz


rule sample:
    """Generate one image a seed."""
    input:
        plan.model_weights,
    output:
        "results/samples/{model}/{sampler}/{seeds}.npz",
    log:
        "logs/sample/{model}/{sampler}/{seeds}.log",
    benchmark:
        "benchmarks/sample/{model}/{sampler}/{seeds}.tsv"
    conda:
        "../../envs/onestep.yaml"
    params:
        sampler=plan.sampler_options,
        code=plan.sample_code,
    shell:
        "onestep sample --weights {input:q} --sampler {params.sampler:q} --seeds {wildcards.seeds} --output {output:q}"
        " 2>&1 | tee {log:q}"


rule extract:
    """Pass generated images through a feature network."""
    input:
        images="results/samples/{model}/{sampler}/{seeds}.npz",
        weights=plan.extractor_weights,
    output:
        "results/features/{model}/{sampler}/{seeds}.{features}.npz",
    log:
        "logs/extract/{model}/{sampler}/{seeds}.{features}.log",
    benchmark:
        "benchmarks/extract/{model}/{sampler}/{seeds}.{features}.tsv"
    conda:
        "../../envs/onestep.yaml"
    params:
        features=plan.extractor_options,
        code=plan.extract_code,
    shell:
        "onestep extract --images {input.images:q} --features {params.features:q} --weights {input.weights:q}"
        " --output {output:q} > {log:q} 2>&1"


rule extract_real:
    """Pass a dataset's images through a feature network: the reference of every metric on it."""
    input:
        images="results/data/{dataset}.zip",
        weights=plan.extractor_weights,
    output:
        "results/features/{dataset}.{features}.npz",
    log:
        "logs/extract/{dataset}.{features}.log",
    benchmark:
        "benchmarks/extract/{dataset}.{features}.tsv"
    conda:
        "../../envs/onestep.yaml"
    params:
        features=plan.extractor_options,
        code=plan.extract_code,
    shell:
        "onestep extract --images {input.images:q} --features {params.features:q} --weights {input.weights:q}"
        " --output {output:q} > {log:q} 2>&1"


rule extract_reference:
    """Pass published real images through a feature network."""
    input:
        images=plan.reference_images,
        weights=plan.extractor_weights,
    output:
        "results/features/reference/{input}.{features}.npz",
    log:
        "logs/extract/reference/{input}.{features}.log",
    benchmark:
        "benchmarks/extract/reference/{input}.{features}.tsv"
    conda:
        "../../envs/onestep.yaml"
    params:
        features=plan.extractor_options,
        code=plan.extract_code,
    shell:
        "onestep extract --images {input.images:q} --features {params.features:q} --weights {input.weights:q}"
        " --output {output:q} > {log:q} 2>&1"
