-- Purpose: classes whose rows, counted with copies, are not the quota's: with copies, exactly the quota or what the cap
--          on copies leaves of it; without, one of each image and no more of them than the quota.
-- Inputs:  rows, stored_classes.
-- Grain:   one row per class that is off; none in a sound manifest.
-- Parameters: $per_class, $fill ('copies' or 'none'), $max_copies (null for no cap).
with
counted as (
    select label, count(*) as images, sum(copies)::BIGINT as copies, min(copies) as fewest from rows group by label
),
expected as (
    select
        *,
        case
            when $fill = 'none' then least(images, $per_class)
            -- $per_class % images of the images get one copy more than the others
            else ($per_class % images) * least($per_class // images + 1, coalesce($max_copies, $per_class))
                + (images - $per_class % images) * least($per_class // images, coalesce($max_copies, $per_class))
        end::BIGINT as expected
    from counted
)
select e.label, c.class_name, e.images, e.copies, e.expected
from expected as e
left join stored_classes as c on c.label = e.label
where e.copies is distinct from e.expected or e.fewest < 1 or e.images > $per_class
order by e.label;
