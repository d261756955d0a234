-- Purpose: what people decided on the sampled images, counted for an estimate. Only the sample counts, whatever else was
--          reviewed; the latest decision of an image wins. A relabel is right where it gives the class that the teacher
--          gave, an accept where the class that was accepted (of the generation that was judged) is this one, a reject never;
--          a skip, or none, leaves the image undecided.
-- Inputs:  sample (rows of one audit), latest_reviews, stored_labels.
-- Grain:   one row per class and stratum of the sample, ordered by them.
with
judged as (
    select
        s.label, s.stratum, s.stratum_images,
        case
            when r.decision = 'relabel' then r.new_label = s.label
            when r.decision = 'accept' then r.generation = s.generation or l.label = s.label
            when r.decision = 'reject' then false
        end as is_right
    from sample as s
    left join latest_reviews as r on r.image_id = s.image_id
    left join (
        select image_id, generation, label
        from stored_labels
        where image_id in (
            select image_id from latest_reviews
            where decision = 'accept' and generation not in (select generation from sample)
                and image_id in (select image_id from sample)
        )
    ) as l on l.image_id = r.image_id and l.generation = r.generation
)
select
    label::INT as label, stratum::INT as stratum, stratum_images as images,
    count(*) as drawn, count(is_right) as decided, count(*) filter (is_right) as right_ones
from judged
group by label, stratum, stratum_images
order by label, stratum;
