# SAMPLES AND FEATURES
# needs:  results/runs/{run}/snapshots/{images}.safetensors, called {run}@{images}, or results/teachers/{teacher}.safetensors,
#         or results/selections/{run}@best-....safetensors, selected in measure.smk
# makes:  results/samples/{model}/{sampler}/{seeds}.npz if images are kept, results/grids/... with the first of them, and
#         results/features/...npz, which are removed once they are measured unless they are kept

from onestep.plan import cost, inputs, sample

# Files that the config does not keep are removed once they are measured.
stored_images = (
    (lambda path: path) if plan.experiment.storage.images == "keep" else temp
)
stored = (lambda path: path) if plan.experiment.storage.features == "keep" else temp


rule extract_real:
    """Extract features of a dataset: the reference of every metric on it."""
    input:
        images=results.data("{dataset}"),
        weights=lambda wildcards: inputs.source_of(
            plan, plan.experiment.features[wildcards.features]
        ),
    output:
        results.real_features("{dataset}", "{features}"),
    log:
        "logs/extract/{dataset}.{features}.log",
    benchmark:
        "benchmarks/extract/{dataset}.{features}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.threads
    resources:
        **plan.gpu,
        mem_mb=32000,
        runtime=lambda wildcards: cost.extraction_minutes(
            plan, wildcards.features, of=dict(wildcards.items())
        ),
    params:
        features=lambda wildcards: plan.options("features", wildcards.features),
        # The name of a dataset or an input; generated images have their own record.
        subject=lambda wildcards: sample.subject_options(wildcards),
        code=lambda wildcards: sample.extraction_code(plan, wildcards.features),
    message:
        "extract {wildcards.features} features of dataset {wildcards.dataset}"
    shell:
        "onestep extract --images {input.images:q} {params.subject} --features {params.features:q}"
        " --features-name {wildcards.features} --weights {input.weights:q} --output {output:q} > {log:q} 2>&1"


use rule extract_real as extract_reference with:
    input:
        images=lambda wildcards: inputs.input(plan, wildcards.input),
        weights=lambda wildcards: inputs.source_of(
            plan, plan.experiment.features[wildcards.features]
        ),
    output:
        results.reference_features("{input}", "{features}"),
    log:
        "logs/extract/reference/{input}.{features}.log",
    benchmark:
        "benchmarks/extract/reference/{input}.{features}.tsv"
    message:
        "extract {wildcards.features} features of input {wildcards.input}"


if sample.stores_images(plan):

    rule sample:
        """Generate one image per seed."""
        input:
            lambda wildcards: plan.weights(wildcards.model),
        output:
            images=stored_images(results.samples("{model}", "{sampler}", "{seeds}")),
            grid=results.grid("{model}", "{sampler}", "{seeds}"),
        log:
            "logs/sample/{model}/{sampler}/{seeds}.log",
        benchmark:
            "benchmarks/sample/{model}/{sampler}/{seeds}.tsv"
        # Before the short jobs that follow: those fill the gaps at the end.
        priority: 1
        group:
            group_of_block
        conda:
            "../../envs/onestep.yaml"
        threads: plan.threads
        resources:
            **plan.gpu,
            in_turn=1,
            mem_mb=32000,
            runtime=lambda wildcards: cost.sampling_minutes(
                plan, f"{wildcards.model}/{wildcards.sampler}/{wildcards.seeds}"
            ),
        params:
            sampler=lambda wildcards: plan.options("samplers", wildcards.sampler),
            code=lambda wildcards: sample.sampling_code(
                plan, wildcards.model, wildcards.sampler
            ),
        message:
            "sample {wildcards.model} by {wildcards.sampler}, seeds {wildcards.seeds}"
        shell:
            "onestep sample --weights {input:q} --model {wildcards.model:q} --sampler {params.sampler:q}"
            " --sampler-name {wildcards.sampler} --seeds {wildcards.seeds} --grid {output.grid:q}"
            " --output {output.images:q} 2>&1 | tee {log:q}"

    if sample.guided_samplers(plan):
        # With a rule of its own, the other samplers' records stay.
        workflow.ruleorder("sample_guided", "sample")

        rule sample_guided:
            """Generate one image per seed with a network and its guide."""
            input:
                weights=lambda wildcards: plan.weights(wildcards.model),
                guide=lambda wildcards: sample.guide_files(plan, wildcards.sampler),
            output:
                images=stored_images(results.samples("{model}", "{sampler}", "{seeds}")),
                grid=results.grid("{model}", "{sampler}", "{seeds}"),
            log:
                "logs/sample/{model}/{sampler}/{seeds}.log",
            benchmark:
                "benchmarks/sample/{model}/{sampler}/{seeds}.tsv"
            wildcard_constraints:
                sampler="|".join(sample.guided_samplers(plan)),
            priority: 1
            group:
                group_of_block
            conda:
                "../../envs/onestep.yaml"
            threads: plan.threads
            resources:
                **plan.gpu,
                in_turn=1,
                mem_mb=32000,
                runtime=lambda wildcards: cost.sampling_minutes(
                    plan, f"{wildcards.model}/{wildcards.sampler}/{wildcards.seeds}"
                ),
            params:
                sampler=lambda wildcards: plan.options("samplers", wildcards.sampler),
                code=lambda wildcards: sample.sampling_code(
                    plan, wildcards.model, wildcards.sampler
                ),
            message:
                "sample {wildcards.model} by {wildcards.sampler}, seeds {wildcards.seeds}"
            shell:
                "onestep sample --weights {input.weights:q} --model {wildcards.model:q} --sampler {params.sampler:q}"
                " --sampler-name {wildcards.sampler} --seeds {wildcards.seeds} --grid {output.grid:q}"
                " --output {output.images:q} 2>&1 | tee {log:q}"

    if sample.decoded_models(plan):
        workflow.ruleorder("sample_decoded", "sample")
        if sample.guided_samplers(plan):
            workflow.ruleorder("sample_decoded", "sample_guided")

        rule sample_decoded:
            """Generate one image per seed in the space of latents, and decode it."""
            input:
                weights=lambda wildcards: plan.weights(wildcards.model),
                guide=lambda wildcards: sample.guide_files(plan, wildcards.sampler),
                codec=lambda wildcards: sample.codec_files(plan, wildcards.model),
            output:
                images=stored_images(results.samples("{model}", "{sampler}", "{seeds}")),
                grid=results.grid("{model}", "{sampler}", "{seeds}"),
            log:
                "logs/sample/{model}/{sampler}/{seeds}.log",
            benchmark:
                "benchmarks/sample/{model}/{sampler}/{seeds}.tsv"
            wildcard_constraints:
                model=sample.decoded_models(plan),
            priority: 1
            group:
                group_of_block
            conda:
                "../../envs/onestep.yaml"
            threads: plan.threads
            resources:
                **plan.gpu,
                in_turn=1,
                mem_mb=32000,
                runtime=lambda wildcards: cost.sampling_minutes(
                    plan, f"{wildcards.model}/{wildcards.sampler}/{wildcards.seeds}"
                ),
            params:
                sampler=lambda wildcards: plan.options("samplers", wildcards.sampler),
                code=lambda wildcards: sample.sampling_code(
                    plan, wildcards.model, wildcards.sampler
                ),
            message:
                "sample {wildcards.model} by {wildcards.sampler}, seeds {wildcards.seeds}"
            shell:
                "onestep sample --weights {input.weights:q} --model {wildcards.model:q} --sampler {params.sampler:q}"
                " --sampler-name {wildcards.sampler} --seeds {wildcards.seeds} --grid {output.grid:q}"
                " --output {output.images:q} --codec {input.codec:q} 2>&1 | tee {log:q}"

    use rule extract_real as extract with:
        input:
            images=results.samples("{model}", "{sampler}", "{seeds}"),
            weights=lambda wildcards: inputs.source_of(
                plan, plan.experiment.features[wildcards.features]
            ),
        output:
            stored(results.features("{model}", "{sampler}", "{seeds}", "{features}")),
        log:
            "logs/extract/{model}/{sampler}/{seeds}.{features}.log",
        benchmark:
            "benchmarks/extract/{model}/{sampler}/{seeds}.{features}.tsv"
        group:
            group_of_block
        message:
            "extract {wildcards.features} features of {wildcards.model} by {wildcards.sampler}, seeds {wildcards.seeds}"


for observed in (
    sample.observe_rules(plan, is_any=not workflow.is_main_process)
    if shares_jobs or not sample.stores_images(plan)
    else []
):
    if sample.stores_images(plan):
        workflow.ruleorder(observed.name, "sample")
        if sample.guided_samplers(plan):
            workflow.ruleorder(observed.name, "sample_guided")
        if sample.decoded_models(plan):
            workflow.ruleorder(observed.name, "sample_decoded")
        workflow.ruleorder(observed.name, "extract")

    rule:
        """Generate one image per seed and extract at once the features of all metrics."""
        name:
            observed.name
        input:
            model=lambda wildcards: plan.weights(wildcards.block.split("/")[0]),
            guide=lambda wildcards: sample.guide_files(
                plan, wildcards.block.split("/")[1]
            ),
            codec=lambda wildcards: sample.codec_files(
                plan, wildcards.block.split("/")[0]
            ),
            # No pattern, whatever the names.
            networks=lambda wildcards, weights=observed.weights: weights,
        output:
            # In the order in which single jobs would make them: Snakemake gives them their times one after the other,
            # and features older than their images would be extracted again.
            images=(
                stored_images(results.block_samples("{block}"))
                if sample.stores_images(plan)
                else []
            ),
            grid=results.block_grid("{block}"),
            features=[
                stored(results.block_features("{block}", features))
                for features in observed.features
            ],
        log:
            "logs/observe/{block}.log",
        benchmark:
            "benchmarks/observe/{block}.tsv"
        wildcard_constraints:
            block=observed.blocks,
        priority: 1
        group:
            group_of_block
        conda:
            "../../envs/onestep.yaml"
        threads: plan.threads
        resources:
            **plan.gpu,
            in_turn=1,
            mem_mb=32000,
            runtime=lambda wildcards: cost.sampling_minutes(plan, wildcards.block),
        params:
            model=lambda wildcards: wildcards.block.split("/")[0],
            sampler_name=lambda wildcards: wildcards.block.split("/")[1],
            sampler=lambda wildcards: plan.options(
                "samplers", wildcards.block.split("/")[1]
            ),
            seeds=lambda wildcards: wildcards.block.split("/")[2],
            features=observed.options,
            weights=observed.weight_options,
            code=lambda wildcards: sample.observation_code(plan, wildcards.block),
            images=lambda wildcards, output: sample.image_options(output),
        message:
            "sample and extract features of {wildcards.block}"
        shell:
            "onestep observe --weights {input.model:q} --model {params.model:q} --sampler {params.sampler:q}"
            " --sampler-name {params.sampler_name} --seeds {params.seeds} --features {params.features:q}"
            " --feature-weights {params.weights} --grid {output.grid:q} --output results/features/{wildcards.block:q}"
            + (" {params.images}" if sample.stores_images(plan) else "")
            + " 2>&1 | tee {log:q}"
