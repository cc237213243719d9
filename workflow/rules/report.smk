# TABLES AND PAGE
# needs:  results/metrics/...json, results/selections/{model}.json, results/runs/{run}/summary.json
# makes:  results/tables/{table}.json .csv .md .tex .svg, results/report/index.html

from onestep.plan import report


rule tabulate:
    """Write a table: measured numbers beside published ones."""
    input:
        unpack(lambda wildcards: report.table_files(plan, wildcards.table)),
    output:
        [
            results.table("{table}", suffix)
            for suffix in (".json", ".csv", ".md", ".tex", ".svg")
        ],
    log:
        "logs/tabulate/{table}.log",
    benchmark:
        "benchmarks/tabulate/{table}.tsv"
    localrule: True
    conda:
        "../../envs/onestep.yaml"
    resources:
        login_jobs=1,
    params:
        table=lambda wildcards: report.table_options(plan, wildcards.table),
        training_code=lambda wildcards: report.table_training_code(
            plan, wildcards.table
        ),
        code=plan.fingerprints.of_stage("tabulate"),
    shell:
        "onestep tabulate --table {params.table:q} --training-code {params.training_code:q} --results results"
        " --output results/tables > {log:q} 2>&1"


rule report:
    """Write the results page: one file that opens from disk."""
    input:
        report.page_inputs(plan),
    output:
        results.report,
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    localrule: True
    conda:
        "../../envs/onestep.yaml"
    resources:
        login_jobs=1,
    params:
        config=report.page_options(plan),
        source=plan.source,
        code=report.page_code(plan),
    shell:
        "onestep report --config {params.source:q} --results results --benchmarks benchmarks --output {output:q} > {log:q} 2>&1"
