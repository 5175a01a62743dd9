"""One reader a data set: each lists what a source holds, as `SourceItem`s."""
