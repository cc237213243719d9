# RUNS AND TEACHERS
# needs:  results/data/{dataset}.zip; where a run starts from a teacher, results/teachers/{teacher}.safetensors
# makes:  results/class_embeddings/{class_embeddings}.safetensors
#         results/runs/{run}/: run.yaml, snapshots/{images}.safetensors (of other averages {images}-ema{half_life}),
#         log.jsonl, summary.json


rule resolve:
    """Write a run's configuration with every default filled in: all that its training reads of config.yaml."""
    output:
        "results/runs/{run}/run.yaml",
    log:
        "logs/resolve/{run}.log",
    benchmark:
        "benchmarks/resolve/{run}.tsv"
    localrule: True
    conda:
        "../../envs/onestep.yaml"
    resources:
        login_jobs=1,
    params:
        # The whole content of the output: no code, so that editing a config check does not train anything again.
        run=plan.training.document,
        source=plan.source,
    shell:
        "onestep resolve --config {params.source:q} --run {wildcards.run} --output {output:q} > {log:q} 2>&1"


rule embed:
    """Average a backbone's features over each class of a dataset: what a discriminator knows of the classes at first."""
    input:
        backbone=plan.class_embeddings.backbone,
        data=plan.class_embeddings.data,
    output:
        "results/class_embeddings/{class_embeddings}.safetensors",
    log:
        "logs/embed/{class_embeddings}.log",
    benchmark:
        "benchmarks/embed/{class_embeddings}.tsv"
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
        options=plan.class_embeddings.options,
        code=plan.class_embeddings.code,
    shell:
        "onestep embed --backbone {input.backbone:q} --data {input.data:q} {params.options} --output {output:q}"
        " > {log:q} 2>&1"


for run in plan.training.runs:

    rule:
        """Train a run where config.yaml's `launch` says, or take it up where it was cut off; publish it when it is done."""
        name:
            f"train_{run.name}"
        input:
            run=f"results/runs/{run.name}/run.yaml",
            data=run.data,
            weights=run.weights,
        output:
            snapshots=run.snapshots,
            log=f"results/runs/{run.name}/log.jsonl",
            summary=f"results/runs/{run.name}/summary.json",
        log:
            f"logs/train/{run.name}.log",
        benchmark:
            f"benchmarks/train/{run.name}.tsv"
        retries: 0
        # Not a job of SLURM itself: it submits one, finds it again, and watches it.
        localrule: True
        conda:
            "../../envs/onestep.yaml"
        # Its job's image is that of launch.python: what submits it stands outside.
        container:
            None
        resources:
            train_jobs=1,
        params:
            config=plan.source,
            # Empty unless the config says that training follows its code.
            code=run.code,
            options=run.options,
        shell:
            "onestep launch --config {params.config:q} --run {input.run:q} --data {input.data:q} {params.options}"
            " --state state --output results/runs --log {log:q} 2>&1 | tee -ai {log:q}"


rule convert:
    """Turn a published checkpoint, or a run's last snapshot, into safetensors and a YAML of the architecture."""
    input:
        plan.teachers.source,
    output:
        weights="results/teachers/{teacher}.safetensors",
        architecture="results/teachers/{teacher}.yaml",
    log:
        "logs/convert/{teacher}.log",
    benchmark:
        "benchmarks/convert/{teacher}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime="30m",
    params:
        options=plan.teachers.options,
        code=plan.teachers.code,
    shell:
        "onestep convert --source {input:q} {params.options} --output {output.weights:q} > {log:q} 2>&1"
