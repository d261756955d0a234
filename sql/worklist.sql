-- Purpose: the images that are most worth a person's time.
-- Inputs:  kept (rows of the newest manifest: image_id, label, confidence, copies; none where there is no manifest),
--          short_classes (label, gain), label_suspects (image_id, label, chance, suggested), stored_duplicates, stored_changes,
--          stored_labels, stored_images, stored_classes, stored_reviews, holdout_twins.
-- Grain:   one row per image, the highest value first; of equals, the lower image_id.
-- Parameters: $generation (the manifest's, or the newest), $has_manifest, $label (only this class; null for all), $only (only
--          this reason; null for all), $limit.
--
-- value is the number of rows of one pass over the training data that a look is expected to put right: the chance that the
-- label is wrong, times the rows that the image counts for.
--
--   reason      who                                               chance                        rows
--   leak        outside the holdout, like one of its images       1                             20: it spoils every measure
--   label       labeled, and a model without it objects           1 - probability of its label  2: teacher and student learn it
--   flip        in the manifest, and another class before         before / (before + now),      copies
--                                                                 both as confidences
--   doubt       in the manifest                                   1 - confidence                copies
--   close call  in the pool, its class is short, not selected     confidence * (1 - margin)     gain: what a repeated image of
--                                                                 that a look decides for it    the class counts for, 1 to 10
--
-- The 20 and the 2 are judgments, the others follow from the manifest. Without a manifest each image counts once, and there
-- is no doubt or close call. An image has the reason that gives it the highest value. It leaves the list when a decision on
-- it is in force, and for this generation when the latest is a skip; a skip of no generation is a decision taken back.
with
settled as (
    select image_id
    from (
        select
            image_id, decision, generation,
            row_number() over (partition by image_id order by decided_at desc, decision desc, new_label) as nth
        from stored_reviews
    )
    where nth = 1 and (decision <> 'skip' or generation >= $generation)
),
-- Of each reason the first are enough: an image among the first of all is among the first of the reason that it is there for.
leaks as (
    select
        d.image_id, coalesce(i.label, l.label) as label, 'leak' as reason, 20.0::DOUBLE as value,
        format('like the holdout image {} ({})', d.holdout_twin, d.kind) as detail, l.confidence, k.copies
    from stored_duplicates as d
    join stored_images as i on i.image_id = d.image_id
    left join stored_labels as l on l.image_id = d.image_id and l.generation = $generation
    left join kept as k on k.image_id = d.image_id
    where ($only::TEXT is null or $only = 'leak') and d.leak and d.image_id not in (select image_id from settled)
      and ($label::INT is null or coalesce(i.label, l.label) = $label)
    order by d.image_id
    limit $limit
),
labels_in_doubt as (
    select
        s.image_id, s.label, 'label' as reason, 2.0::DOUBLE * s.chance as value, format('rather {}', s.suggested) as detail,
        l.confidence, k.copies
    from label_suspects as s
    left join stored_labels as l on l.image_id = s.image_id and l.generation = $generation
    left join kept as k on k.image_id = s.image_id
    where ($only::TEXT is null or $only = 'label')
      and s.image_id not in (select image_id from settled) and ($label::INT is null or s.label = $label)
    order by value desc, s.image_id
    limit $limit
),
flips as (
    select
        c.image_id, c.label_after as label, 'flip' as reason,
        c.confidence_before::DOUBLE / (c.confidence_before::DOUBLE + c.confidence_after::DOUBLE)
            * case when $has_manifest then k.copies else 1 end as value,
        format('was {} ({:.2f})', b.class_name, c.confidence_before) as detail, c.confidence_after as confidence, k.copies
    from stored_changes as c
    left join kept as k on k.image_id = c.image_id
    join stored_classes as b on b.label = c.label_before
    where ($only::TEXT is null or $only = 'flip') and c.generation = $generation and c.split = 'unlabeled'
      and c.label_before <> c.label_after
      and (not $has_manifest or k.image_id is not null)
      and c.image_id not in (select image_id from settled) and ($label::INT is null or c.label_after = $label)
    order by value desc, c.image_id
    limit $limit
),
doubts as (
    select
        image_id, label, 'doubt' as reason, (1 - confidence::DOUBLE) * copies as value, null as detail, confidence, copies
    from kept
    where ($only::TEXT is null or $only = 'doubt')
      and image_id not in (select image_id from settled) and ($label::INT is null or label = $label)
    order by value desc, image_id
    limit $limit
),
close_calls as (
    select
        l.image_id, l.label, 'close call' as reason,
        l.confidence::DOUBLE * (1 - l.margin::DOUBLE) * s.gain as value, null as detail, l.confidence, 0 as copies
    from stored_labels as l
    join short_classes as s on s.label = l.label
    where ($only::TEXT is null or $only = 'close call') and l.generation = $generation and l.split = 'unlabeled'
      and l.image_id not in (select image_id from kept)
      and l.image_id not in (select image_id from settled)
      and l.image_id not in (select image_id from holdout_twins)
      and ($label::INT is null or l.label = $label)
    order by value desc, l.image_id
    limit $limit
),
every as (
    from leaks
    union all by name from labels_in_doubt
    union all by name from flips
    union all by name from doubts
    union all by name from close_calls
),
first as (
    select * from every
    qualify row_number() over (partition by image_id order by value desc, reason) = 1
    order by value desc, image_id
    limit $limit
)
select
    f.image_id, i.uri, c.class_name, f.reason, round(f.value, 6) as value, f.detail, f.confidence,
    coalesce(f.copies, 0) as copies
from first as f
join stored_images as i on i.image_id = f.image_id
left join stored_classes as c on c.label = f.label
order by f.value desc, f.image_id;
