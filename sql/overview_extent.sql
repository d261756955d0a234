-- Purpose: what was done beside labeling: decisions, manifests, calibrations, trainings.
-- Inputs:  stored_reviews, stored_manifests, stored_calibrations, stored_models, stored_classes.
-- Grain:   one row.
--
-- calibrated and taught are generations: those of a model with a temperature, and those whose labels a student learned from.
select
    (select count(*) from stored_classes) as classes,
    (select count(*) from stored_reviews) as decisions,
    (select count(*) from stored_manifests) as manifests,
    (select name from stored_manifests order by created_at desc, name limit 1) as manifest,
    (select coalesce(list(distinct generation::INT), []) from stored_calibrations) as calibrated,
    (
        select coalesce(list(distinct n.generation::INT), [])
        from stored_models as m
        join stored_manifests as n on n.name = m.manifest
    ) as taught;
