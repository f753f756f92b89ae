//! Order statistics: they are not moved by the odd interrupted round, as a mean is.

/// The middle value; of an even number the upper of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that this share of the values does not exceed. NaN for no values.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share of a short list")]
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// The middle of the differences, pair by pair: what drifts over minutes is in both and goes.
pub(crate) fn median_difference(with: &[f64], without: &[f64]) -> f64 {
    let differences: Vec<f64> = with.iter().zip(without).map(|(a, b)| a - b).collect();
    median(&differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "values are picked, not computed")]
    fn quantiles_are_values_of_the_list() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(median(&values), 3.0);
        assert_eq!(quantile(&values, 0.99), 5.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert!(median(&[]).is_nan());
        assert_eq!(median_difference(&[10.0, 22.0, 31.0], &[9.0, 20.0, 30.0]), 1.0);
    }
}
