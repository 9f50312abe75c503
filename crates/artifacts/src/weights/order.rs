//! How the elements that a tensor shows lie in its file, where not as they are.

/// The order of a tensor's rows in its file. GGUF files keep some matrices otherwise than Hugging
/// Face checkpoints, which is the order that a [`Tensor`](super::Tensor) shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowOrder {
    /// As they are.
    #[default]
    Plain,
    /// A matrix `[in, out]` lies as `[out, in]`.
    Transposed,
    /// Within each head of `head_rows` rows, the rows of its two halves alternate.
    Rotary {
        /// Rows of a head, an even number.
        head_rows: usize,
    },
    /// A fused projection, which shows the query heads, the key and the value of one group after
    /// the other, lies as all queries, all keys, all values.
    Grouped {
        /// Query heads, a multiple of the groups.
        n_heads: usize,
        /// Groups.
        n_kv_heads: usize,
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that is row `row` of the tensor. Transposed matrices have no such row;
    /// for them it is `row`.
    pub fn stored_row(self, row: usize) -> usize {
        match self {
            Self::Plain | Self::Transposed => row,
            Self::Rotary { head_rows } => {
                let (head, within) = (row / head_rows, row % head_rows);
                let half = head_rows / 2;
                head * head_rows + within % half * 2 + within / half
            }
            Self::Grouped { n_heads, n_kv_heads, head_dim } => {
                let n_queries = n_heads / n_kv_heads;
                let (head, within) = (row / head_dim, row % head_dim);
                let (group, slot) = (head / (n_queries + 2), head % (n_queries + 2));
                let stored = match slot.checked_sub(n_queries) {
                    None => group * n_queries + slot,
                    Some(0) => n_heads + group,
                    Some(_) => n_heads + n_kv_heads + group,
                };
                stored * head_dim + within
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(order: RowOrder, expect: &[usize]) {
        let found: Vec<usize> = (0..expect.len()).map(|row| order.stored_row(row)).collect();
        assert_eq!(found, expect, "{order:?}");
    }

    #[test]
    fn rows_are_found_where_they_lie() {
        check(RowOrder::Plain, &[0, 1, 2]);
        check(RowOrder::Rotary { head_rows: 4 }, &[0, 2, 1, 3, 4, 6, 5, 7]);
        // Two groups of two queries: q0 q1 k0 v0 q2 q3 k1 v1 of q0 q1 q2 q3 k0 k1 v0 v1.
        let order = RowOrder::Grouped { n_heads: 4, n_kv_heads: 2, head_dim: 1 };
        check(order, &[0, 1, 4, 6, 2, 3, 5, 7]);
        let order = RowOrder::Grouped { n_heads: 2, n_kv_heads: 1, head_dim: 2 };
        check(order, &[0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
