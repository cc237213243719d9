# SAMPLES AND FEATURES
# needs:  results/runs/{run}/snapshots/{images}.safetensors, called {run}@{images}, or results/teachers/{teacher}.safetensors,
#         or results/selections/{run}@best-....safetensors, chosen in measure.smk
# makes:  results/samples/{model}/{sampler}/{seeds}.npz if images are kept, results/grids/... with the first of them, and
#         results/features/...npz, which go once they are measured unless they are kept


# Features go once they are measured, unless the config keeps them.
stored = (lambda features: features) if plan.features.kept else temp

if plan.images.kept:

    rule sample:
        """Generate one image a seed."""
        input:
            plan.images.network,
        output:
            images="results/samples/{model}/{sampler}/{seeds}.npz",
            grid="results/grids/{model}/{sampler}/{seeds}.npz",
        log:
            "logs/sample/{model}/{sampler}/{seeds}.log",
        benchmark:
            "benchmarks/sample/{model}/{sampler}/{seeds}.tsv"
        conda:
            "../../envs/onestep.yaml"
        threads: plan.site.threads
        resources:
            mem_mb=32000,
            runtime="12h",
            gpu=plan.site.gpu,
            gpu_model=plan.site.gpu_model,
            gres=plan.site.gres,
        params:
            sampler=plan.images.options,
            code=plan.images.code,
        shell:
            "onestep sample --weights {input:q} --model {wildcards.model:q} --sampler {params.sampler:q}"
            " --sampler-name {wildcards.sampler:q} --seeds {wildcards.seeds} --grid {output.grid:q}"
            " --output {output.images:q} 2>&1 | tee {log:q}"

    rule extract:
        """Pass generated images through a feature network."""
        input:
            images="results/samples/{model}/{sampler}/{seeds}.npz",
            weights=plan.features.weights,
        output:
            stored("results/features/{model}/{sampler}/{seeds}.{features}.npz"),
        log:
            "logs/extract/{model}/{sampler}/{seeds}.{features}.log",
        benchmark:
            "benchmarks/extract/{model}/{sampler}/{seeds}.{features}.tsv"
        conda:
            "../../envs/onestep.yaml"
        threads: plan.site.threads
        resources:
            mem_mb=32000,
            runtime="4h",
            gpu=plan.site.gpu,
            gpu_model=plan.site.gpu_model,
            gres=plan.site.gres,
        params:
            features=plan.features.options,
            code=plan.features.code,
        shell:
            "onestep extract --images {input.images:q} --features {params.features:q}"
            " --features-name {wildcards.features:q} --weights {input.weights:q} --output {output:q} > {log:q} 2>&1"


for look in [] if plan.images.kept else plan.observations.looks:

    rule:
        """Generate one image a seed and pass it at once through every feature network that anything asks for."""
        name:
            look.rule
        input:
            model=plan.observations.network,
            networks=look.weights,
        output:
            features=[
                stored(f"results/features/{{block}}.{features}.npz")
                for features in look.features
            ],
            grid="results/grids/{block}.npz",
        log:
            "logs/observe/{block}.log",
        benchmark:
            "benchmarks/observe/{block}.tsv"
        wildcard_constraints:
            block=look.blocks,
        conda:
            "../../envs/onestep.yaml"
        threads: plan.site.threads
        resources:
            mem_mb=32000,
            runtime="12h",
            gpu=plan.site.gpu,
            gpu_model=plan.site.gpu_model,
            gres=plan.site.gres,
        params:
            model=lambda wildcards: wildcards.block.split("/")[0],
            sampler_name=lambda wildcards: wildcards.block.split("/")[1],
            sampler=plan.observations.sampler,
            seeds=plan.observations.seeds,
            features=look.networks,
            weights=look.weight_options,
            code=plan.observations.code,
        shell:
            "onestep observe --weights {input.model:q} --model {params.model:q} --sampler {params.sampler:q}"
            " --sampler-name {params.sampler_name:q} --seeds {params.seeds} --features {params.features:q} --feature-weights {params.weights} --grid {output.grid:q}"
            " --output results/features/{wildcards.block:q} 2>&1 | tee {log:q}"


rule extract_real:
    """Pass a dataset's images through a feature network: the reference of every metric on it."""
    input:
        images="results/data/{dataset}.zip",
        weights=plan.features.weights,
    output:
        "results/features/{dataset}.{features}.npz",
    log:
        "logs/extract/{dataset}.{features}.log",
    benchmark:
        "benchmarks/extract/{dataset}.{features}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.site.threads
    resources:
        mem_mb=32000,
        runtime="4h",
        gpu=plan.site.gpu,
        gpu_model=plan.site.gpu_model,
        gres=plan.site.gres,
    params:
        features=plan.features.options,
        code=plan.features.code,
    shell:
        "onestep extract --images {input.images:q} --dataset {wildcards.dataset:q} --features {params.features:q}"
        " --features-name {wildcards.features:q} --weights {input.weights:q} --output {output:q} > {log:q} 2>&1"


rule extract_reference:
    """Pass published real images through a feature network."""
    input:
        images=plan.references.images,
        weights=plan.features.weights,
    output:
        "results/features/reference/{input}.{features}.npz",
    log:
        "logs/extract/reference/{input}.{features}.log",
    benchmark:
        "benchmarks/extract/reference/{input}.{features}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.site.threads
    resources:
        mem_mb=32000,
        runtime="4h",
        gpu=plan.site.gpu,
        gpu_model=plan.site.gpu_model,
        gres=plan.site.gres,
    params:
        features=plan.features.options,
        code=plan.features.code,
    shell:
        "onestep extract --images {input.images:q} --input {wildcards.input:q} --features {params.features:q}"
        " --features-name {wildcards.features:q} --weights {input.weights:q} --output {output:q} > {log:q} 2>&1"
