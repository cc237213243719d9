# RUNS AND TEACHERS
# needs:  results/data/{dataset}.zip; where a run starts from a teacher, results/teachers/{teacher}.safetensors
# makes:  results/class_embeddings/{class_embeddings}.safetensors
#         results/codecs/{input}.safetensors, of runs and datasets with a codec
#         results/runs/{run}/: run.yaml, snapshots/{images}.safetensors (of other averages {images}-ema{half_life}
#         or -ema{std} for profiles of `power`, of which results/averages/{model}.safetensors is made),
#         snapshots.json with their digests, log.jsonl, summary.json; earlier/{spec}/ has the same of earlier configs

from onestep.fingerprint import every
from onestep.plan import inputs, messages, train

trainings = train.train_rules(plan)
settled = {run.name: run.settled for run in trainings}


rule resolve:
    """Write the resolved configuration of a run: all that its training reads of config.yaml."""
    output:
        # Not removed before the job, which compares the published run with it.
        update(results.run_config("{run}")),
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
        # The whole content of the output: no code, so that editing a config check does not train anything again. That
        # of a settled run stays as it is, so that an edit of its length runs nothing.
        run=lambda wildcards: train.run_config(
            plan, wildcards.run, settled=settled.get(wildcards.run)
        ),
        # As a function of the output it is no reason to run again: the same experiment may have another file's name.
        source=lambda wildcards, output: plan.source,
        # The usual name, which records of earlier versions have: what they trained stays valid.
        recorded="config.yaml",
    message:
        "resolve the configuration of {wildcards.run}"
    shell:
        "onestep resolve --config {params.source:q} --run {wildcards.run} --output {output:q} > {log:q} 2>&1"


rule embed:
    """Compute the initial class embeddings of a discriminator: mean features of a backbone for each class."""
    input:
        unpack(
            lambda wildcards: inputs.embedding_files(plan, wildcards.class_embeddings)
        ),
    output:
        results.class_embeddings("{class_embeddings}"),
    log:
        "logs/embed/{class_embeddings}.log",
    benchmark:
        "benchmarks/embed/{class_embeddings}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: plan.threads
    resources:
        **plan.gpu,
        mem_mb=32000,
        runtime="4h",
    params:
        options=lambda wildcards: inputs.embedding_options(
            plan, wildcards.class_embeddings
        ),
        code=plan.fingerprints.of_stage("embed", every("classifiers")),
    message:
        "compute class embeddings {wildcards.class_embeddings}"
    shell:
        "onestep embed --backbone {input.backbone:q} --data {input.data:q} {params.options} --output {output:q}"
        " > {log:q} 2>&1"


for run in trainings:

    rule:
        """Train a run as section `launch` describes, resume it where it stopped, and publish it."""
        name:
            f"train_{run.name}"
        input:
            run=results.run_config(run.name),
            data=run.data,
            # No pattern, whatever the names.
            weights=lambda wildcards, weights=run.weights: weights,
        output:
            # Snapshots are published while the job runs, and nothing that is published is removed.
            snapshots=update(run.snapshots) if run.is_same else run.snapshots,
            log=update(results.log(run.name)),
            summary=update(results.summary(run.name)),
        log:
            f"logs/train/{run.name}.log",
        benchmark:
            f"benchmarks/train/{run.name}.tsv"
        # The longest chain of runs starts first.
        priority: run.priority
        retries: 0
        # Not a SLURM job: it submits one, finds it again, and follows it.
        localrule: True
        conda:
            "../../envs/onestep.yaml"
        # The image of its SLURM job is that of launch.python; this process runs outside.
        container:
            None
        resources:
            train_jobs=1,
        params:
            config=lambda wildcards, output: plan.source,
            recorded="config.yaml",
            # Empty unless config.yaml lets training follow its code.
            code=run.code,
            options=run.options,
        message:
            messages.of_training(plan, run.name)
        shell:
            "onestep launch --config {params.config:q} --run {input.run:q} --data {input.data:q} {params.options}"
            " --state state --output results/runs --log {log:q} 2>&1 | tee -ai {log:q}"


rule average:
    """Make a further average of a run's weights from those with power-function profiles at its snapshots."""
    input:
        lambda wildcards: train.kept_averages(plan, wildcards.model),
    output:
        results.average("{model}"),
    log:
        "logs/average/{model}.log",
    benchmark:
        "benchmarks/average/{model}.tsv"
    conda:
        "../../envs/onestep.yaml"
    threads: 1
    resources:
        mem_mb=32000,
        runtime="2h",
    params:
        options=lambda wildcards: train.average_options(wildcards.model),
        code=plan.fingerprints.of_stage("average"),
    message:
        "average the weights {wildcards.model}"
    shell:
        "onestep average --snapshots {input:q} {params.options} --output {output:q} > {log:q} 2>&1"


rule convert:
    """Turn a published checkpoint, or a run's last snapshot, into safetensors and a YAML of the architecture."""
    input:
        lambda wildcards: inputs.source_of(
            plan, plan.experiment.teachers[wildcards.teacher]
        ),
    output:
        weights=results.teacher("{teacher}"),
        architecture=results.teacher("{teacher}", ".yaml"),
    log:
        "logs/convert/{teacher}.log",
    benchmark:
        "benchmarks/convert/{teacher}.tsv"
    # Before all that trains, as other runs wait for it.
    priority: 10**12
    conda:
        "../../envs/onestep.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime="30m",
    params:
        options=lambda wildcards: inputs.teacher_options(plan, wildcards.teacher),
        code=plan.fingerprints.of_stage("convert"),
    message:
        "convert teacher {wildcards.teacher}"
    shell:
        "onestep convert --source {input:q} {params.options} --output {output.weights:q} > {log:q} 2>&1"


if inputs.codecs(plan):

    use rule convert as convert_codec with:
        input:
            lambda wildcards: inputs.input(plan, wildcards.input),
        output:
            weights=results.codec("{input}"),
            architecture=results.codec("{input}", ".yaml"),
        log:
            "logs/convert/codec/{input}.log",
        benchmark:
            "benchmarks/convert/codec/{input}.tsv"
        params:
            options="",
            code=plan.fingerprints.of_stage("convert"),
        message:
            "convert codec {wildcards.input}"
