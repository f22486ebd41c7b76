// What a store of an earlier version lacks, added when it is next opened for writing. Run twice,
// it does nothing more.

ALTER TABLE Input ADD IF NOT EXISTS created STRING;
ALTER TABLE LABELLED ADD IF NOT EXISTS created STRING;
ALTER TABLE Label ADD IF NOT EXISTS name STRING;
ALTER TABLE Checkpoint ADD IF NOT EXISTS name STRING;
ALTER TABLE Checkpoint ADD IF NOT EXISTS component_counts INT64[];
MATCH (l:Label) WHERE l.name IS NULL SET l.name = l.id;
MATCH (c:Checkpoint) WHERE c.name IS NULL SET c.name = CAST(c.n_edges AS STRING) + ' edges';
