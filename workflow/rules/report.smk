# TABLES AND PAGE
# needs:  results/metrics/...json, results/selections/{model}.json, results/runs/{run}/summary.json
# makes:  results/tables/{table}.json .csv .md .tex .svg, results/report/index.html

from onestep.plan import report as page


rule tabulate:
    """Write a table: measured numbers beside published ones."""
    input:
        unpack(lambda wildcards: page.table_files(plan, wildcards.table)),
    output:
        [results.table("{table}", suffix) for suffix in (".json", ".tex")],
        [
            report(
                results.table("{table}", suffix),
                caption="../report/table.rst",
                category="Tables",
                labels={"table": "{table}", "format": suffix[1:]},
            )
            for suffix in (".csv", ".md", ".svg")
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
        # Those that are not in the command make it run again; it reads the config, whose rows may exceed an argument.
        source=lambda wildcards, output: plan.source,
        recorded="config.yaml",
        table=lambda wildcards: page.table_options(plan, wildcards.table),
        training_code=lambda wildcards: page.table_training_code(plan, wildcards.table),
        code=plan.fingerprints.of_stage("tabulate"),
    message:
        "make table {wildcards.table}"
    shell:
        "onestep tabulate --config {params.source:q} --name {wildcards.table} --results results"
        " --output results/tables > {log:q} 2>&1"


rule report:
    """Write the results page: one file that opens from disk."""
    input:
        page.page_inputs(plan),
    output:
        page=report(
            results.report,
            caption="../report/page.rst",
            category="Page",
            labels={"content": "results page"},
        ),
        samples=[
            report(
                results.samples_picture(table),
                caption="../report/samples.rst",
                category="Samples",
                labels={"table": table},
            )
            for table in plan.experiment.tables
        ],
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
        config=page.page_options(plan),
        source=lambda wildcards, output: plan.source,
        recorded="config.yaml",
        code=page.page_code(plan),
    message:
        "make the results page"
    shell:
        "onestep report --config {params.source:q} --results results --benchmarks benchmarks --output {output.page:q} > {log:q} 2>&1"
