-- Purpose: images of the manifest, or of the pool where there is none, that had another class in the generation before.
-- Inputs:  stored_changes, stored_classes, kept, settled.
-- Grain:   one row per image, the highest value first; see worklist.sql for the value.
-- Parameters: $generation, $label (only this class; null for all), $least (no lower value), $limit, $has_manifest, $most (copies of no
--             image in the manifest are more: what cannot reach $least by that is not looked up there).
with flips as (
    select
        image_id, label_before, label_after, confidence_before, confidence_after,
        confidence_before::DOUBLE / (confidence_before::DOUBLE + confidence_after::DOUBLE) as chance
    from stored_changes
    where generation = $generation and split = 'unlabeled' and label_before <> label_after
      and ($label::INT is null or label_after = $label)
),
valued as (
    select f.*, k.copies, f.chance * case when $has_manifest then k.copies else 1 end as value
    from flips as f
    left join kept as k on k.image_id = f.image_id
    where f.chance * $most >= $least and (not $has_manifest or k.image_id is not null)
)
select
    v.image_id, v.label_after::INT as label, 'flip' as reason, v.value,
    format('was {} ({:.2f})', b.class_name, v.confidence_before) as detail, v.confidence_after as confidence, v.copies
from valued as v
join stored_classes as b on b.label = v.label_before
where v.value >= $least and v.image_id not in (select image_id from settled)
order by v.value desc, v.image_id
limit $limit;
