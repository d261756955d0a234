-- Purpose: with --accepted, what a reviewer accepted or gave a class comes before all else in its class: a person has
--          seen it. Among these the teacher's confidence orders, as closely as a FLOAT of this size tells it (2^-22).
-- Inputs:  let_through, decisions.
-- Grain:   one row per image; scores of policies end at 1e30 (sql/policy_rows.sql).
select
    e.* replace (
        case when d.decision in ('accept', 'relabel') then 1e31 * (1 + e.confidence::DOUBLE) else e.score end::FLOAT
        as score
    )
from let_through as e
left join decisions as d on d.image_id = e.image_id;
