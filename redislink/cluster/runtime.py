"""The fields of SPU's ``RuntimeConfig`` that a cluster file may set, under ``config.runtime``.

Rules: names, types and choices are those of SPU; a field that is left out keeps SPU's default.
`REFUSED` lists the fields of SPU that a cluster file may not set, with the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

_STRICT = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "protocol": "it belongs one level up, as config.protocol",
        "field": "it belongs one level up, as config.field",
        "fxp_fraction_bits": "it belongs one level up, as config.fxp_fraction_bits",
        "enable_runtime_snapshot": "SPU would write every party's shares into files",
        "snapshot_dump_dir": "SPU would write every party's shares into files",
    }
)
"""Fields of ``RuntimeConfig`` that a cluster file may not set, and why."""

_Natural = Field(default=None, ge=0, le=2**31 - 1)
_Large = Field(default=None, ge=0, le=2**63 - 1)


class ClientSslConfig(BaseModel):
    """TLS to the beaver server. The paths are the same at every member.

    Attributes:
        certificate: path of this member's certificate (PEM).
        private_key: path of its private key, never the key itself: all parties have this file.
        ca_file_path: path of the CA's certificate; without it, SPU uses the system's CAs.
        verify_depth: the longest chain of certificates to accept; at least 1, because 0 would turn
            the check off.
    """

    model_config = _STRICT
    certificate: str | None = None
    private_key: str | None = None
    ca_file_path: str | None = None
    verify_depth: StrictInt = Field(default=1, ge=1, le=100)

    @model_validator(mode="after")
    def _no_key_within(self) -> ClientSslConfig:
        if self.private_key is not None and "-----BEGIN" in self.private_key:
            raise ValueError(
                "private_key holds the key itself, and every party would have it: give the path "
                "of a file"
            )
        return self


class TtpBeaverConfig(BaseModel):
    """The third party that makes SEMI2K's beavers. SPU dials it directly, past the broker.

    Attributes:
        server_host: ``host:port`` of SPU's beaver server.
        server_public_key: that server's public key (PEM).
        asym_crypto_schema: algorithm of that key.
        adjust_rank: relative rank of the member that makes the larger calls.
        transport_protocol: protocol between member and server.
        ssl_config: TLS to the server; without it, the connection is in clear.
    """

    model_config = _STRICT
    server_host: str = Field(min_length=1)
    server_public_key: str = Field(min_length=1)
    asym_crypto_schema: Literal["SM2"] = "SM2"
    adjust_rank: StrictInt = Field(default=0, ge=0, le=63)
    transport_protocol: Literal["http", "h2"] | None = None
    ssl_config: ClientSslConfig | None = None


class CheetahConfig(BaseModel):
    """How CHEETAH computes.

    Attributes:
        disable_matmul_pack: do not pack the ciphertexts of matrix products.
        enable_mul_lsb_error: allow an error in the last bit of products; faster.
        ot_kind: how oblivious transfers are made.
    """

    model_config = _STRICT
    disable_matmul_pack: StrictBool | None = None
    enable_mul_lsb_error: StrictBool | None = None
    ot_kind: Literal["YACL_Ferret", "YACL_Softspoken", "EMP_Ferret"] | None = None


class SpuRuntime(BaseModel):
    """Further fields of SPU's ``RuntimeConfig``; a field that you leave out keeps SPU's default.

    Attributes:
        max_concurrency: most threads that SPU uses; 0: one per core.
        enable_action_trace: print each call within SPU.
        enable_type_checker: while running, compare types of values with those at compile time.
        enable_pphlo_trace: print each operation.
        enable_pphlo_profile: print the time of each operation.
        enable_hal_profile: print the time of each call of SPU's abstraction layer.
        public_random_seed: seed of public random values; nothing secret depends on it.
        share_max_chunk_size: largest piece of a share, in bytes.
        sort_method: how to sort; CHEETAH has only SORT_NETWORK.
        quick_sort_threshold: number of elements below which SORT_QUICK merges instead.
        fxp_div_goldschmidt_iters: rounds of division.
        fxp_exp_mode: how to approximate exp.
        fxp_exp_iters: rounds of exp.
        fxp_log_mode: how to approximate log.
        fxp_log_iters: rounds of log.
        fxp_log_orders: orders of log.
        sigmoid_mode: how to approximate the logistic function.
        enable_lower_accuracy_rsqrt: a simpler reciprocal square root.
        sine_cosine_iters: rounds of sine and cosine.
        beaver_type: SEMI2K only: who makes the beavers; see docs/which-protocol.md.
        ttp_beaver_config: SEMI2K with TrustedThirdParty only: the third party.
        cheetah_2pc_config: CHEETAH only.
        trunc_allow_msb_error: truncate faster, with rare but large errors.
        experimental_disable_mmul_split: SPU's experiment.
        experimental_enable_inter_op_par: run independent operations at the same time.
        experimental_enable_intra_op_par: run parts of one operation at the same time.
        experimental_disable_vectorization: SPU's experiment.
        experimental_inter_op_concurrency: most operations at the same time.
        experimental_enable_colocated_optimization: SPU's experiment.
        experimental_enable_exp_prime: allow EXP_PRIME.
        experimental_exp_prime_offset: shift the range in which EXP_PRIME is right.
        experimental_exp_prime_disable_lower_bound: do not clamp below that range.
        experimental_exp_prime_enable_upper_bound: clamp above that range.
    """

    model_config = _STRICT
    max_concurrency: StrictInt | None = _Natural
    enable_action_trace: StrictBool | None = None
    enable_type_checker: StrictBool | None = None
    enable_pphlo_trace: StrictBool | None = None
    enable_pphlo_profile: StrictBool | None = None
    enable_hal_profile: StrictBool | None = None
    public_random_seed: StrictInt | None = _Large
    share_max_chunk_size: StrictInt | None = Field(default=None, ge=1024, le=2**30)
    sort_method: Literal["SORT_DEFAULT", "SORT_RADIX", "SORT_QUICK", "SORT_NETWORK"] | None = None
    quick_sort_threshold: StrictInt | None = _Natural
    fxp_div_goldschmidt_iters: StrictInt | None = _Natural
    fxp_exp_mode: Literal["EXP_DEFAULT", "EXP_PADE", "EXP_TAYLOR", "EXP_PRIME"] | None = None
    fxp_exp_iters: StrictInt | None = _Natural
    fxp_log_mode: Literal["LOG_DEFAULT", "LOG_PADE", "LOG_NEWTON", "LOG_MINMAX"] | None = None
    fxp_log_iters: StrictInt | None = _Natural
    fxp_log_orders: StrictInt | None = _Natural
    sigmoid_mode: (
        Literal["SIGMOID_DEFAULT", "SIGMOID_MM1", "SIGMOID_SEG3", "SIGMOID_REAL"] | None
    ) = None
    enable_lower_accuracy_rsqrt: StrictBool | None = None
    sine_cosine_iters: StrictInt | None = _Natural
    beaver_type: Literal["TrustedFirstParty", "TrustedThirdParty"] | None = None
    ttp_beaver_config: TtpBeaverConfig | None = None
    cheetah_2pc_config: CheetahConfig | None = None
    trunc_allow_msb_error: StrictBool | None = None
    experimental_disable_mmul_split: StrictBool | None = None
    experimental_enable_inter_op_par: StrictBool | None = None
    experimental_enable_intra_op_par: StrictBool | None = None
    experimental_disable_vectorization: StrictBool | None = None
    experimental_inter_op_concurrency: StrictInt | None = _Natural
    experimental_enable_colocated_optimization: StrictBool | None = None
    experimental_enable_exp_prime: StrictBool | None = None
    experimental_exp_prime_offset: StrictInt | None = _Natural
    experimental_exp_prime_disable_lower_bound: StrictBool | None = None
    experimental_exp_prime_enable_upper_bound: StrictBool | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_given_here(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        for name, reason in REFUSED.items():
            if name in given:
                raise ValueError(f"{name} cannot be set here: {reason}")
        for name, model in (
            ("ttp_beaver_config", TtpBeaverConfig),
            ("cheetah_2pc_config", CheetahConfig),
        ):
            if not isinstance(given.get(name, {}), Mapping | model):
                raise ValueError(
                    f"{name} has fields of its own: write {name}: {{…}} with any of "
                    f"{', '.join(model.model_fields)}"
                )
        if given.get("beaver_type") == "MultiParty":
            raise ValueError(
                "beaver_type MultiParty is in SPU's list, but SPU refuses it: use "
                "TrustedThirdParty, or another protocol"
            )
        return given

    def check(self, protocol: str) -> None:
        """Check that this protocol reads every field that is set.

        Args:
            protocol: the device's protocol.

        Raises:
            ValueError: it does not; the message names the field and says what to do.
        """
        if protocol != "SEMI2K":
            for name in ("beaver_type", "ttp_beaver_config"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"only SEMI2K has runtime.{name}, and this is {protocol}: remove it"
                    )
        if protocol != "CHEETAH" and self.cheetah_2pc_config is not None:
            raise ValueError(
                f"only CHEETAH has runtime.cheetah_2pc_config, and this is {protocol}: remove it"
            )
        third = self.beaver_type == "TrustedThirdParty"
        if third and self.ttp_beaver_config is None:
            raise ValueError(
                "beaver_type TrustedThirdParty needs that party: add runtime.ttp_beaver_config "
                "with server_host and server_public_key"
            )
        if self.ttp_beaver_config is not None and not third:
            raise ValueError(
                "runtime.ttp_beaver_config has no effect without beaver_type: "
                "TrustedThirdParty: add that"
            )
