// Empty: what owns a precompiled header needs a source.
