-- Purpose: classes of which the labels sorted for the app are others than the labels, by a hash over all values.
-- Inputs:  stored_browse, stored_histograms, stored_labels, bases (as in browse_missing.sql).
-- Grain:   one row per generation, split and class that differs; none in a sound store.
-- Mend:    curator doctor --mend
with
kept as (
    select distinct b.generation, b.basis
    from bases as b
    join stored_histograms as h on h.generation = b.generation and h.basis = b.basis
    where b.family = 'browse'
),
given as (
    select
        generation, split, label, count(*) as images,
        bit_xor(hash(image_id, confidence, margin, entropy)) as content
    from stored_labels
    where generation in (select generation from kept)
    group by all
),
sorted as (
    select
        generation, split, label, count(*) as images,
        bit_xor(hash(image_id, confidence, margin, entropy)) as content
    from stored_browse
    where (generation, basis) in (select (generation, basis) from kept)
    group by all
)
select generation, split, label, g.images as labels, s.images as sorted
from given as g
full join sorted as s using (generation, split, label)
where g.images is distinct from s.images or g.content is distinct from s.content
order by generation, split, label;
