// The graph, the same names in every store (docs/graph.md). Columns that came later stand last,
// since a store that is older gets them added there (upgrade.cypher).
// An INT64 State id is trace number << 20 | (level * n_tokens + position): the states of one trace
// are one range of the primary key, which is what makes a single trace quick to read.

CREATE NODE TABLE Model (
    id STRING PRIMARY KEY, name STRING, revision STRING, family STRING, n_layers INT32,
    n_heads INT32, d_model INT32, n_params INT64, dtype STRING, parallel BOOLEAN, windows INT32[]
);
CREATE NODE TABLE Input (
    id STRING PRIMARY KEY, name STRING, text STRING, corpus STRING, n_tokens INT32,
    continuation STRING, meta STRING, created STRING
);
CREATE NODE TABLE Label (id STRING PRIMARY KEY, key STRING, value STRING, name STRING);
CREATE NODE TABLE Trace (
    id STRING PRIMARY KEY, number INT64, name STRING, status STRING, archive STRING,
    model STRING, input STRING, settings STRING, scorer STRING, search STRING, seed INT64,
    position_rule STRING, position INT32, target_rule STRING, target_id INT32, target STRING,
    foil_id INT32, foil STRING, dtype STRING, version STRING, format INT32, method INT32,
    created STRING, n_tokens INT32, n_nodes INT64, n_edges INT64, n_kept INT64, entropy DOUBLE,
    loss DOUBLE, predicted_id INT32, predicted STRING, density DOUBLE, density_normalised DOUBLE,
    mass90_edges INT64, score_gini DOUBLE, mlp_active_share DOUBLE, content STRING,
    token_ids INT32[], tokens STRING[], special BOOLEAN[], curve STRING, curves STRING[]
);
CREATE NODE TABLE State (
    id INT64 PRIMARY KEY, name STRING, trace STRING, level INT32, layer INT32, site STRING,
    position INT32, token_id INT32, token STRING, special BOOLEAN, experts STRING
);
CREATE NODE TABLE Component (
    id STRING PRIMARY KEY, name STRING, hook STRING, model STRING, kind STRING, layer INT32,
    head INT32
);
CREATE NODE TABLE Checkpoint (
    id STRING PRIMARY KEY, curve INT32, grid DOUBLE, size DOUBLE, n_edges INT64, mode STRING,
    ablation STRING, ablate STRING, reference STRING, eval_dtype STRING, tv DOUBLE, kl DOUBLE, top1 BOOLEAN,
    nucleus INT32, p_predicted DOUBLE, p_target DOUBLE, logit_diff DOUBLE, name STRING,
    component_counts INT64[]
);
CREATE REL TABLE OF_MODEL (FROM Trace TO Model);
CREATE REL TABLE OF_INPUT (FROM Trace TO Input);
CREATE REL TABLE LABELLED (FROM Input TO Label, created STRING);
CREATE REL TABLE OUTPUT (FROM Trace TO State);
CREATE REL TABLE IN_TRACE (FROM State TO Trace);
CREATE REL TABLE AT (FROM Trace TO Checkpoint);
CREATE REL TABLE USES (FROM Trace TO Component, n INT64, best_rank INT64, score DOUBLE);
CREATE REL TABLE RESIDUAL (FROM State TO State, score FLOAT, rank INT64, first BOOLEAN);
CREATE REL TABLE MLP (FROM State TO State, score FLOAT, rank INT64, first BOOLEAN);
CREATE REL TABLE ATTENTION (FROM State TO State, head INT32, score FLOAT, rank INT64, first BOOLEAN);
