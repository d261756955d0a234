-- Purpose: with --accepted, what a reviewer gave a class, or accepted in it, comes before all else of the class: a person has
--          seen it. Among these the teacher's confidence orders, as closely as a FLOAT of this size tells it (2^-22).
-- Inputs:  let_through, accepted.
-- Grain:   one row per image; scores of policies end at 1e30 (sql/policy_rows.sql).
select
    e.* replace (
        case when a.label = e.label then 1e31 * (1 + e.confidence::DOUBLE) else e.score end::FLOAT
        as score
    )
from let_through as e
left join accepted as a on a.image_id = e.image_id;
