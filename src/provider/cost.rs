//! Costs that vendors state inside their usage objects.

use rust_decimal::Decimal;

use super::StatedCost;
use super::object::{members, quantity, supersede};
use crate::money::Usd;

/// The cost members of a usage object, superseding field by field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Costs {
    /// US dollars charged by the one who answers.
    charged: Option<Decimal>,
    /// US dollars that the party behind it charges.
    upstream: Option<Decimal>,
    /// Whether the party behind it bills the customer's own key.
    is_byok: Option<bool>,
}

/// xAI's ticks in a US dollar.
const TICKS_PER_USD: Decimal = Decimal::from_parts(1_410_065_408, 2, 0, false, 0);

impl Costs {
    /// Takes a member of a usage object; false if it is none about cost.
    pub(crate) fn read(&mut self, key: &str, text: &str) -> bool {
        match key {
            // A number of US dollars (OpenRouter), or an object with a total (Perplexity).
            "cost" => {
                supersede(&mut self.charged, text);
                members(text, &mut |key, text| {
                    if key == "total_cost" {
                        supersede(&mut self.charged, text);
                    }
                });
            }
            // DeepInfra, in US dollars.
            "estimated_cost" => supersede(&mut self.charged, text),
            // xAI.
            "cost_in_usd_ticks" => {
                if let Some(ticks) = quantity(text) {
                    self.charged = ticks.checked_div(TICKS_PER_USD);
                }
            }
            "is_byok" => match text {
                "true" => self.is_byok = Some(true),
                "false" => self.is_byok = Some(false),
                _ => {}
            },
            "cost_details" => {
                members(text, &mut |key, text| {
                    if key == "upstream_inference_cost" {
                        supersede(&mut self.upstream, text);
                    }
                });
            }
            _ => return false,
        }
        true
    }

    /// The cost to all parties, if it was stated.
    ///
    /// OpenRouter fills `upstream_inference_cost` without bring-your-own-key too, where it is a
    /// part of `cost` or equal to it: only `is_byok: true` makes it a second bill. With such a
    /// key but without its amount, the fee alone is not the cost, and none is stated.
    pub(crate) fn stated(&self) -> Option<StatedCost> {
        let charged = Usd::new(self.charged?).normalize();
        if self.is_byok != Some(true) {
            return Some(StatedCost {
                total: charged,
                upstream: None,
            });
        }
        let upstream = Usd::new(self.upstream?).normalize();
        Some(StatedCost {
            total: (charged + upstream).normalize(),
            upstream: Some(upstream),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(object: &str) -> Option<(String, Option<String>)> {
        let mut costs = Costs::default();
        assert!(members(object, &mut |key, text| {
            costs.read(key, text);
        }));
        costs.stated().map(|cost| {
            (
                cost.total.to_string(),
                cost.upstream.map(|usd| usd.to_string()),
            )
        })
    }

    fn whole(total: &str) -> Option<(String, Option<String>)> {
        Some((total.to_owned(), None))
    }

    #[test]
    fn upstream_cost_counts_only_with_an_own_key() {
        for is_byok in ["", r#","is_byok":false"#, r#","is_byok":null"#] {
            let object = format!(
                r#"{{"cost":0.0076,"cost_details":{{"upstream_inference_cost":0.0006}}{is_byok}}}"#
            );
            assert_eq!(stated(&object), whole("0.0076"), "{object}");
        }
        assert_eq!(
            stated(
                r#"{"is_byok":true,"cost":0.0005,"cost_details":{"upstream_inference_cost":0.01}}"#
            ),
            Some(("0.0105".into(), Some("0.01".into())))
        );
    }

    #[test]
    fn a_fee_alone_is_not_the_cost_of_an_own_key() {
        for details in ["null", "{}", r#"{"upstream_inference_cost":null}"#] {
            let object = format!(r#"{{"is_byok":true,"cost":0,"cost_details":{details}}}"#);
            assert_eq!(stated(&object), None, "{object}");
        }
    }

    #[test]
    fn every_way_of_stating_a_cost_is_read_exactly() {
        assert_eq!(stated(r#"{"cost":1.2e-05}"#), whole("0.000012"));
        assert_eq!(
            stated(r#"{"cost":{"request_cost":0.014,"total_cost":0.015}}"#),
            whole("0.015")
        );
        assert_eq!(stated(r#"{"estimated_cost":3.3e-07}"#), whole("0.00000033"));
        assert_eq!(
            stated(r#"{"cost_in_usd_ticks":158500}"#),
            whole("0.00001585")
        );
        assert_eq!(stated(r#"{"cost":0}"#), whole("0"));
        assert_eq!(stated(r#"{"cost":null}"#), None);
        assert_eq!(stated("{}"), None);
    }
}
