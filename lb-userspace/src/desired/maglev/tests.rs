use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

fn candidate(host: u16, weight: u32) -> Candidate {
    let [high, low] = host.to_be_bytes();
    Candidate { address: SocketAddr::from(([10, 0, high, low], 8080)).into(), weight }
}

fn candidates(count: u16) -> Vec<Candidate> {
    (0..count).map(|host| candidate(host, 1)).collect()
}

/// The address that each position leads to.
fn addresses(candidates: &[Candidate]) -> Vec<SocketAddress> {
    table(candidates).into_iter().map(|index| candidates[index as usize].address).collect()
}

fn counts(candidates: &[Candidate]) -> Vec<u32> {
    let mut counts = vec![0; candidates.len()];
    for index in table(candidates) {
        counts[index as usize] += 1;
    }
    counts
}

/// The share of positions of the others that a candidate's going moves, in thousandths.
fn moved(count: u16, gone: usize) -> usize {
    let all = candidates(count);
    let mut rest = all.clone();
    let gone = rest.remove(gone).address;
    let (before, after) = (addresses(&all), addresses(&rest));
    assert_eq!(before.len(), after.len(), "the size stays");
    let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && b != a).count();
    moved * 1_000 / before.len()
}

#[test]
fn sizes_are_primes_with_a_hundred_positions_for_each_backend() {
    for (most, size) in SIZES {
        assert!(
            (2..size).take_while(|factor| factor * factor <= size).all(|factor| size % factor != 0),
            "{size}"
        );
        assert!(most == MAX_BACKENDS || size as usize >= 100 * most, "{size}");
    }
    assert_eq!(
        [0, 1, 2, 3, 10, 11, 65_535, 65_536].map(size),
        [0, 0, 1_021, 1_021, 1_021, 16_381, 131_071, 0]
    );
    assert!(table(&candidates(1)).is_empty() && table(&[candidate(1, 0), candidate(2, 0)]).is_empty());
}

#[test]
fn equal_weights_differ_by_one_position_at_most() {
    for count in [2, 3, 10, 100, 500] {
        let counts = counts(&candidates(count));
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 1, "{count}: {least} to {most}");
    }
}

#[test]
fn positions_follow_the_weights() {
    let counts = counts(&[candidate(1, 1), candidate(2, 2), candidate(3, 5), candidate(4, 0)]);
    assert_eq!(counts.iter().sum::<u32>(), 1_021);
    for (count, expected) in counts.iter().zip([127_u32, 255, 638, 0]) {
        assert!(count.abs_diff(expected) <= 2, "{counts:?}");
    }
}

#[test]
fn few_clients_of_others_move_when_a_backend_goes() {
    for (count, most) in [(10, 60), (40, 60), (100, 60)] {
        let worst = (0..count as usize).step_by(7).map(|gone| moved(count, gone)).max().unwrap();
        assert!(worst <= most, "{count}: {worst} thousandths");
    }
}

#[test]
fn the_table_of_these_backends_never_changes() {
    let socket = |text: &str| Candidate { address: text.parse::<SocketAddr>().unwrap().into(), weight: 1 };
    let table = table(&[socket("10.0.0.1:80"), socket("10.0.0.2:80"), socket("[fd00::1]:80")]);
    // Nodes of different versions agree on it.
    let start = [1, 2, 1, 1, 2, 2, 2, 0, 0, 0, 2, 2, 0, 0, 0, 2, 2, 1, 0, 1, 1, 2, 0, 0];
    assert_eq!(table[..24], start);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_the_backends_does_not_matter(
        shuffled in Just((0..30_u16).collect::<Vec<_>>()).prop_shuffle(), count in 2..30_usize,
    ) {
        let shuffled: Vec<_> = shuffled.into_iter().take(count).map(|host| candidate(host, 1)).collect();
        let mut sorted = shuffled.clone();
        sorted.sort_by_key(|candidate| candidate.address);
        prop_assert_eq!(addresses(&shuffled), addresses(&sorted));
    }
}
